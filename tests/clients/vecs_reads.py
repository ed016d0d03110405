"""The vecs client reads the collection docs that pg_ingest wrote."""

import vecs
from common import URL, embed, same
from vecs import IndexMeasure

with vecs.create_client(URL) as client:
    same([c.name for c in client.list_collections()], ["docs"])
    docs = client.get_or_create_collection(name="docs", dimension=1536)
    same(len(docs), 4)
    assert docs.index.startswith("ix_vector_cosine_ops_hnsw_m16_efc64_"), docs.index
    assert docs.is_indexed_for_measure(IndexMeasure.cosine_distance)

    question = embed("Cats sleep for most of the day.")
    ((nearest, distance, metadata),) = docs.query(question, limit=1, include_value=True, include_metadata=True)
    same(nearest, "b.md#0")
    assert abs(distance) < 1e-5, distance
    same(metadata["text"], "Cats sleep for most of the day.")
    same([metadata[k] for k in ("doc_id", "document_id", "ref_doc_id")], ["b.md"] * 3)
    same(metadata["year"], 2021)

    for filters, expected in [
        ({"lang": {"$eq": "de"}}, ["c.md#0"]),
        ({"year": {"$eq": 2024}}, ["a.md#0"]),
        ({"year": {"$gt": 2021}}, ["a.md#0", "c.md#0"]),
        ({"lang": {"$in": ["de", "fr"]}}, ["c.md#0"]),
        ({"tags": {"$contains": "cats"}}, ["b.md#0", "c.md#0"]),
        ({"$and": [{"lang": {"$eq": "en"}}, {"year": {"$lt": 2022}}]}, ["b.md#0"]),
        ({"doc_id": {"$eq": "it's #1"}}, ["it's #1#0"]),
    ]:
        same(sorted(docs.query(question, limit=10, filters=filters)), expected)
    same(docs.fetch(["a.md#0"])[0][2]["lang"], "en")
