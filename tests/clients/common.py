"""What the scripts share: how to reach the database that a test names in its arguments."""

import sys
import warnings

import psycopg2

warnings.simplefilter("error", UserWarning)  # the vecs client warns of a query without an index

HOME, DATABASE = sys.argv[1:3]
URL = f"postgresql+psycopg2://postgres@/{DATABASE}?host={HOME}&port=5432"


def connect():
    return psycopg2.connect(host=HOME, port=5432, user="postgres", dbname=DATABASE)


def embed(text):
    """A query's vector, as the application would get it."""
    with connect() as connection, connection.cursor() as cursor:
        cursor.execute("SELECT ingest.embed(%s, 'docs')::real[]", (text,))
        return cursor.fetchone()[0]


def same(found, expected):
    assert found == expected, f"found {found!r}, not {expected!r}"
