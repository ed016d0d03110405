"""LlamaIndex's SupabaseVectorStore gets nodes out of what pg_ingest wrote."""

from common import URL, embed, same
from llama_index.core.vector_stores.types import ExactMatchFilter, MetadataFilters, VectorStoreQuery
from llama_index.vector_stores.supabase import SupabaseVectorStore

store = SupabaseVectorStore(postgres_connection_string=URL, collection_name="docs", dimension=1536)


def ask(text, k, **filters):
    filters = [ExactMatchFilter(key=key, value=value) for key, value in filters.items()]
    query = VectorStoreQuery(
        query_embedding=embed(text), similarity_top_k=k, filters=MetadataFilters(filters=filters) if filters else None
    )
    return store.query(query)


found = ask("Rotate a key by making a new one first.", 2)
same(found.ids[0], "a.md#0")
node = found.nodes[0]
same(node.node_id, "a.md#0")
same(node.class_name(), "TextNode")
same(node.get_content(), "Rotate a key by making a new one first.")
same(node.metadata, {"lang": "en", "year": 2024, "tags": ["keys", "ops"]})
same(node.ref_doc_id, "a.md")
same(ask("Cats", 10, lang="de").ids, ["c.md#0"])
same(ask("Cats", 10, lang="en", year=2021).ids, ["b.md#0"])
same(ask("Cats", 10, ref_doc_id="it's #1").nodes[0].ref_doc_id, "it's #1")
same(len(ask("Cats", 10).ids), 4)
