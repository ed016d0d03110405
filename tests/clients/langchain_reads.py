"""LangChain's SupabaseVectorStore asks the match function in the way that PostgREST would: as the role anon, with only
public on the search_path, arguments taken out of a JSON body and typed as the catalogue types them."""

import json
import sys
import types

import psycopg2
from common import DATABASE, HOME, embed, same

sys.modules["supabase"] = types.ModuleType("supabase")  # LangChain only looks whether it is installed

from langchain_community.vectorstores import SupabaseVectorStore  # noqa: E402
from langchain_core.embeddings import Embeddings  # noqa: E402


class Call:
    def __init__(self, connection, name, arguments):
        self.connection, self.name, self.arguments, self.rows = connection, name, arguments, None

    def limit(self, rows):
        self.rows = rows
        return self

    def execute(self):
        with self.connection, self.connection.cursor() as cursor:
            cursor.execute(
                "SELECT coalesce(jsonb_object_agg(u.name, format_type(u.type, NULL)), '{}')"
                " FROM pg_proc p, unnest(p.proargnames, p.proargtypes::oid[]) AS u(name, type)"
                " WHERE p.oid = %s::regproc AND u.name = ANY (%s)",
                (f"public.{self.name}", list(self.arguments)),
            )
            typed = cursor.fetchone()[0]
            same(sorted(typed), sorted(self.arguments))
            columns = ", ".join(f'"{name}" {kind}' for name, kind in typed.items())
            given = ", ".join(f'"{name}" := body."{name}"' for name in typed)
            cursor.execute("SET LOCAL search_path = public; SET LOCAL ROLE anon; SET TRANSACTION READ ONLY")
            # The types were named while extensions was on the path.
            columns = columns.replace(" vector", " extensions.vector")
            cursor.execute(
                f"SELECT coalesce(json_agg(r), '[]') FROM (SELECT call.* FROM json_to_record(%s::json) AS body({columns}),"
                f' LATERAL public."{self.name}"({given}) AS call LIMIT %s) AS r',
                (json.dumps(self.arguments), self.rows),
            )
            return types.SimpleNamespace(data=cursor.fetchone()[0])


class Client:
    def __init__(self):
        self.connection = psycopg2.connect(host=HOME, port=5432, user="postgres", dbname=DATABASE)

    def rpc(self, name, arguments):
        return Call(self.connection, name, arguments)


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
# What supabase-js sends: rpc('match_documents', {query_embedding, match_count, match_threshold}).
rows = Client().rpc("match_documents", {"query_embedding": embed("Cats"), "match_count": 2, "match_threshold": -1}).execute().data
same(len(rows), 2)
same(sorted(rows[0]), ["content", "id", "metadata", "similarity"])
