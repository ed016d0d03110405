"""LangChain's SupabaseVectorStore asks the match function as PostgREST does, as the role anon."""

import sys
import types

import postgrest
from common import embed, same

sys.modules["supabase"] = types.ModuleType("supabase")  # LangChain only looks whether it is installed

from langchain_community.vectorstores import SupabaseVectorStore  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402


class Call:
    def __init__(self, name, arguments):
        self.name, self.arguments, self.rows = name, arguments, None

    def limit(self, rows):
        self.rows = rows
        return self

    def execute(self):
        return types.SimpleNamespace(data=postgrest.call("anon", self.name, self.arguments, self.rows))


class Client:
    def rpc(self, name, arguments):
        return Call(name, arguments)


class Embedded(Embeddings):
    def embed_query(self, text):
        return embed(text)

    def embed_documents(self, texts):
        return [embed(text) for text in texts]


store = SupabaseVectorStore(client=Client(), embedding=Embedded(), table_name="docs", query_name="match_documents")
document, similarity = store.similarity_search_with_relevance_scores("Cats sleep for most of the day.", k=1)[0]
same(document.page_content, "Cats sleep for most of the day.")
same(document.metadata, {"lang": "en", "year": 2021, "tags": ["cats"]})
assert similarity > 0.999, similarity
same([d.page_content for d in store.similarity_search("Cats", k=4, filter={"lang": "de"})], ["Katzen schlafen den halben Tag."])
same(len(store.similarity_search("Cats", k=3)), 3)
same(len(store.similarity_search("Cats", k=10)), 4)
# What supabase-js sends, which is not there to ask on every machine.
rows = postgrest.call("anon", "match_documents", {"query_embedding": embed("Cats"), "match_count": 2, "match_threshold": -1})
same(len(rows), 2)
same(sorted(rows[0]), ["content", "id", "metadata", "similarity"])
