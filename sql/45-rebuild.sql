-- Changing one's mind about a pipeline with data. The new definition is a second row of the pipeline's name in
-- ingest.pipeline, its successor, with a table of its own beside the old one; documents are queued for both. When the
-- successor has all of them, its table takes the old one's name and its definition the pipeline's row, at once.

CREATE FUNCTION ingest.embedding_of(target regclass) RETURNS name
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = target AND a.attname = 'embedding') THEN 'embedding' ELSE 'vec' END::name
$$;
COMMENT ON FUNCTION ingest.embedding_of(regclass) IS 'The column of a target that holds the vectors: embedding, or in layout vecs vec';

-- Why a table cannot give its place to another one; no row when nothing is in the way. Reads the catalogs only.
CREATE FUNCTION ingest.not_carried(target regclass, owner oid) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH t AS (
        SELECT c.*, a.attnum AS embedding
        FROM pg_class c LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = ingest.embedding_of(target) WHERE c.oid = target
    ), dependents AS (
        SELECT d.*
        FROM t JOIN pg_depend d
          ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid
          OR d.refclassid = 'pg_type'::regclass
             AND d.refobjid IN (t.reltype, (SELECT y.typarray FROM pg_type y WHERE y.oid = t.reltype))
    )
    SELECT format('it is a %s', CASE t.relkind WHEN 'p' THEN 'partitioned table' WHEN 'f' THEN 'foreign table' ELSE 'view' END)
    FROM t WHERE t.relkind <> 'r'
    UNION ALL
    SELECT 'it inherits from another table, or another from it' FROM t
    WHERE t.relispartition OR EXISTS (SELECT FROM pg_inherits i WHERE t.oid IN (i.inhrelid, i.inhparent)) AND t.relkind = 'r'
    UNION ALL
    SELECT 'it is a typed or temporary table' FROM t WHERE t.reloftype <> 0 OR t.relpersistence = 't'
    UNION ALL
    SELECT format('it belongs to role %s, which the pipeline''s owner is no member of', t.relowner::regrole)
    FROM t WHERE NOT pg_has_role(owner, t.relowner, 'USAGE')
    UNION ALL
    SELECT format('the pipeline''s owner may not create tables in schema %s', t.relnamespace::regnamespace)
    -- The default target lies in the extension's own schema, and so does the table beside it.
    FROM t WHERE NOT has_schema_privilege(owner, t.relnamespace, 'CREATE')
      AND NOT (t.relnamespace = 'ingest'::regnamespace AND t.relname LIKE '%\_chunks')
    UNION ALL
    SELECT format('trigger %I', g.tgname) FROM t JOIN pg_trigger g ON g.tgrelid = t.oid WHERE NOT g.tgisinternal
    UNION ALL
    SELECT format('rule %I', r.rulename) FROM t JOIN pg_rewrite r ON r.ev_class = t.oid WHERE t.relkind = 'r'
    UNION ALL
    SELECT format('publication %I', p.pubname)
    FROM t JOIN pg_publication_rel r ON r.prrelid = t.oid JOIN pg_publication p ON p.oid = r.prpubid
    WHERE NOT pg_has_role(owner, p.pubowner, 'USAGE') OR to_jsonb(r) ->> 'prqual' IS NOT NULL OR to_jsonb(r) ->> 'prattrs' IS NOT NULL
    UNION ALL
    SELECT format('security label of %s', l.provider)
    FROM t JOIN pg_seclabel l ON l.classoid = 'pg_class'::regclass AND l.objoid = t.oid
    UNION ALL
    SELECT 'its replica identity is an index' FROM t WHERE t.relreplident = 'i'
    UNION ALL
    -- What else needs it and would go with it: views, functions over its row type, foreign keys to it, others' policies.
    SELECT DISTINCT CASE WHEN d.classid = 'pg_rewrite'::regclass
                         THEN (SELECT format('%s %s', CASE v.relkind WHEN 'm' THEN 'materialized view' ELSE 'view' END, v.oid::regclass)
                               FROM pg_rewrite r JOIN pg_class v ON v.oid = r.ev_class WHERE r.oid = d.objid)
                         ELSE pg_describe_object(d.classid, d.objid, 0) END
    FROM dependents d, t
    WHERE d.deptype = 'n'
      AND NOT EXISTS (SELECT FROM pg_policy p WHERE d.classid = 'pg_policy'::regclass AND p.oid = d.objid AND p.polrelid = t.oid)
      AND NOT EXISTS (SELECT FROM pg_constraint c
                      WHERE d.classid = 'pg_constraint'::regclass AND c.oid = d.objid AND c.conrelid = t.oid AND c.confrelid <> t.oid)
      AND NOT EXISTS (SELECT FROM pg_attrdef f WHERE d.classid = 'pg_attrdef'::regclass AND f.oid = d.objid AND f.adrelid = t.oid)
      AND NOT EXISTS (SELECT FROM pg_trigger g WHERE d.classid = 'pg_trigger'::regclass AND g.oid = d.objid AND g.tgrelid = t.oid)
      AND NOT EXISTS (SELECT FROM pg_rewrite r WHERE d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.ev_class = t.oid)
    UNION ALL
    -- The column of vectors changes its type.
    SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0)
    FROM t JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = t.oid AND d.refobjsubid = t.embedding
    WHERE d.classid IN ('pg_attrdef'::regclass, 'pg_statistic_ext'::regclass)
       OR d.classid = 'pg_constraint'::regclass AND EXISTS (SELECT FROM pg_constraint c WHERE c.oid = d.objid AND c.contype <> 'n')
       OR d.classid = 'pg_class'::regclass
          AND EXISTS (SELECT FROM pg_index i WHERE i.indexrelid = d.objid
                      AND (i.indnatts <> 1 OR i.indexprs IS NOT NULL OR i.indpred IS NOT NULL))
$$;
COMMENT ON FUNCTION ingest.not_carried(regclass, oid) IS 'What keeps a target from giving its place to a table that is built beside it, for this owner of its pipeline';

-- A free name for the table that is built beside another.
CREATE FUNCTION ingest.next_name(target regclass) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT l.name
    FROM pg_class c,
         LATERAL (SELECT substring(c.relname::text FROM '_chunks$') AS suffix) AS e,
         generate_series(1, 1000) AS n,
         -- The suffix tells whose rights make it (lent.rs).
         LATERAL (SELECT left(c.relname::text, s) || CASE WHEN s < length(c.relname::text) THEN coalesce(e.suffix, '') ELSE '' END
                         || '_next' || CASE n WHEN 1 THEN '' ELSE n::text END AS name
                  FROM generate_series(1, 54) AS s
                  WHERE octet_length(left(c.relname::text, s))
                        + CASE WHEN s < length(c.relname::text) THEN coalesce(octet_length(e.suffix), 0) ELSE 0 END <= 54
                  ORDER BY s DESC LIMIT 1) AS l
    WHERE c.oid = target
      AND NOT EXISTS (SELECT FROM pg_class o WHERE o.relnamespace = c.relnamespace AND o.relname = l.name)
    ORDER BY n LIMIT 1
$$;
COMMENT ON FUNCTION ingest.next_name(regclass) IS 'The name of the table that is built beside a target: <target>_next, or a free one like it';

CREATE FUNCTION ingest.next_table(target regclass, schema text, name text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CREATE %s TABLE %I.%I (LIKE %s INCLUDING ALL)%s%s', CASE c.relpersistence WHEN 'u' THEN 'UNLOGGED' END,
                  schema, name, target,
                  ' WITH (' || (SELECT string_agg(format('%s = %L', split_part(o, '=', 1), substr(o, strpos(o, '=') + 1)), ', ')
                                FROM unnest(c.reloptions) AS o) || ')',
                  ' TABLESPACE ' || (SELECT quote_ident(s.spcname) FROM pg_tablespace s WHERE s.oid = c.reltablespace))
    FROM pg_class c WHERE c.oid = target
$$;
COMMENT ON FUNCTION ingest.next_table(regclass, text, text) IS 'The statement that makes the table that is built beside a target';

-- The table and the sequences that belong to its columns.
CREATE FUNCTION ingest.relations_of(target regclass)
RETURNS TABLE (relation regclass, kind text, owner oid, acl aclitem[], of_column name, deptype "char")
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT c.oid::regclass, 'TABLE', c.relowner, c.relacl, NULL::name, NULL::"char" FROM pg_class c WHERE c.oid = target
    UNION ALL
    SELECT s.oid::regclass, 'SEQUENCE', s.relowner, s.relacl, a.attname, d.deptype
    FROM pg_depend d
    JOIN pg_class s ON s.oid = d.objid AND s.relkind = 'S'
    JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    WHERE d.classid = 'pg_class'::regclass AND d.refclassid = 'pg_class'::regclass AND d.refobjid = target AND d.deptype IN ('a', 'i')
$$;
COMMENT ON FUNCTION ingest.relations_of(regclass) IS 'A table and the sequences that its columns own, with their rights';

-- Until the switch nobody but the owner sees the new table, whatever rights new tables get by default.
CREATE FUNCTION ingest.next_statements(target regclass, next regclass, embedding text) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT statement FROM (
        SELECT 1, format('REVOKE ALL ON %s %s FROM %s', r.kind, r.relation,
                         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END)
        FROM ingest.relations_of(next) r, LATERAL (SELECT DISTINCT e.grantee FROM aclexplode(r.acl) e WHERE e.grantee <> r.owner) x
        UNION ALL
        SELECT 2, format('DROP INDEX %s', i.indexrelid::regclass)
        FROM pg_index i JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
        WHERE i.indrelid = next AND a.attname = ingest.embedding_of(target)
        UNION ALL
        SELECT 3, format('ALTER TABLE %s ALTER COLUMN %I TYPE %s USING NULL', next, ingest.embedding_of(target), embedding)
        UNION ALL
        SELECT 4, format('ALTER TABLE %s ADD CONSTRAINT %I %s', next, c.conname, pg_get_constraintdef(c.oid))
        FROM pg_constraint c WHERE c.conrelid = target AND c.contype = 'f' AND c.conparentid = 0
    ) AS s(step, statement)
    ORDER BY step
$$;
COMMENT ON FUNCTION ingest.next_statements(regclass, regclass, text) IS 'What is done to the new table after it is made, for vectors of this type';

-- An index on the vectors as it is told apart from others: by method, operator class and place among its like.
CREATE FUNCTION ingest.indexes_of(target regclass)
RETURNS TABLE (index oid, name name, on_embedding boolean, method name, opclass text, options text[], description text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT n.index, n.name, n.on_embedding, n.method, n.opclass, n.options,
           concat_ws(' ', n.key, row_number() OVER (PARTITION BY n.key ORDER BY n.name))
    FROM (SELECT c.oid AS index, c.relname AS name, coalesce(a.attname = ingest.embedding_of(target), false) AS on_embedding, m.amname AS method,
                 regexp_replace(o.opcname, '^(vector|halfvec)_', '') AS opclass, c.reloptions AS options,
                 concat_ws(' ', m.amname, i.indisunique, i.indisprimary, regexp_replace(o.opcname, '^(vector|halfvec)_', ''),
                           (SELECT string_agg(pg_get_indexdef(i.indexrelid, k, true), ',' ORDER BY k) FROM generate_series(1, i.indnatts) k),
                           pg_get_expr(i.indpred, i.indrelid)) AS key
          FROM pg_index i
          JOIN pg_class c ON c.oid = i.indexrelid
          JOIN pg_am m ON m.oid = c.relam
          JOIN pg_opclass o ON o.oid = i.indclass[0]
          LEFT JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = i.indkey[0]
          WHERE i.indrelid = target AND i.indisvalid) AS n
$$;
COMMENT ON FUNCTION ingest.indexes_of(regclass) IS 'A table''s indexes, with a description by which those of another like it are found';

CREATE FUNCTION ingest.missing_indexes(target regclass, next regclass) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CREATE INDEX ON %s USING %I (%I %s.%I)%s', next, o.method, a.attname, n.oid::regnamespace, y.typname || '_' || o.opclass,
                  ' WITH (' || array_to_string(o.options, ', ') || ')')
    FROM ingest.indexes_of(target) o
    JOIN pg_attribute a ON a.attrelid = next AND a.attname = ingest.embedding_of(target)
    JOIN pg_type y ON y.oid = a.atttypid
    JOIN pg_namespace n ON n.oid = y.typnamespace
    WHERE o.on_embedding AND NOT EXISTS (SELECT FROM ingest.indexes_of(next) x WHERE x.description = o.description)
$$;
COMMENT ON FUNCTION ingest.missing_indexes(regclass, regclass) IS 'Statements that make the indexes on vectors that a target has and the table beside it has not';

-- Everything that a user has put on the table and LIKE does not copy goes over in the moment of the switch. The old table is
-- dropped first, so that its names are free; without CASCADE, so that nothing that came meanwhile goes with it.
CREATE FUNCTION ingest.swap_statements(target regclass, next regclass) RETURNS TABLE (renames boolean, statement text)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH o AS (
        SELECT c.*, format('%s.%I', c.relnamespace::regnamespace, c.relname) AS place FROM pg_class c WHERE c.oid = target
    ), relations AS (
        SELECT r.kind, r.acl, r.owner, r.of_column, r.relation,
               CASE r.kind WHEN 'TABLE' THEN o.place ELSE r.relation::text END AS place
        FROM ingest.relations_of(target) r, o
    )
    SELECT s.step BETWEEN 3 AND 5, s.statement FROM (
        -- A sequence that a default reads stays, and goes with the new table's column.
        SELECT 1, format('ALTER SEQUENCE %s OWNED BY %s.%I', r.relation, next, r.of_column)
        FROM ingest.relations_of(target) r WHERE r.deptype = 'a'
        UNION ALL
        SELECT 2, format('DROP TABLE %s', target)
        UNION ALL
        SELECT 3, format('ALTER TABLE %s RENAME TO %I', next, o.relname) FROM o
        UNION ALL
        SELECT 4, format('ALTER INDEX %s RENAME TO %I', n.index::regclass, x.name)
        FROM ingest.indexes_of(target) x JOIN ingest.indexes_of(next) n USING (description) WHERE n.name <> x.name
        UNION ALL
        -- One that the old table had not is called after it all the same.
        SELECT 4, format('ALTER INDEX %s RENAME TO %I', n.index::regclass, o.relname || substr(n.name::text, length(t.relname::text) + 1))
        FROM o, pg_class t, ingest.indexes_of(next) n
        WHERE t.oid = next AND starts_with(n.name::text, t.relname::text)
          AND NOT EXISTS (SELECT FROM ingest.indexes_of(target) x WHERE x.description = n.description)
          AND NOT EXISTS (SELECT FROM pg_class c WHERE c.relnamespace = o.relnamespace
                          AND c.relname = o.relname || substr(n.name::text, length(t.relname::text) + 1))
        UNION ALL
        SELECT 5, format('ALTER SEQUENCE %s RENAME TO %I', n.relation, c.relname)
        FROM ingest.relations_of(target) r
        JOIN ingest.relations_of(next) n ON n.of_column = r.of_column AND n.deptype = 'i' AND r.deptype = 'i'
        JOIN pg_class c ON c.oid = r.relation
        UNION ALL
        SELECT 6, format('GRANT %s ON %s %s TO %s%s', x.privilege_type, r.kind, r.place,
                         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END,
                         CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' END)
        FROM relations r, aclexplode(r.acl) x WHERE x.grantee <> r.owner
        UNION ALL
        SELECT 6, format('GRANT %s (%I) ON %s TO %s%s', x.privilege_type, a.attname, o.place,
                         CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE x.grantee::regrole::text END,
                         CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' END)
        FROM o JOIN pg_attribute a ON a.attrelid = o.oid AND NOT a.attisdropped, aclexplode(a.attacl) x
        UNION ALL
        SELECT 7, format('CREATE POLICY %I ON %s AS %s FOR %s TO %s%s%s', p.polname, o.place,
                         CASE WHEN p.polpermissive THEN 'PERMISSIVE' ELSE 'RESTRICTIVE' END,
                         CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE' WHEN 'd' THEN 'DELETE' ELSE 'ALL' END,
                         (SELECT string_agg(CASE g WHEN 0 THEN 'PUBLIC' ELSE g::regrole::text END, ', ') FROM unnest(p.polroles) g),
                         ' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')',
                         ' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')')
        FROM o JOIN pg_policy p ON p.polrelid = o.oid
        UNION ALL
        SELECT 8, format('COMMENT ON POLICY %I ON %s IS %L', p.polname, o.place, obj_description(p.oid, 'pg_policy'))
        FROM o JOIN pg_policy p ON p.polrelid = o.oid WHERE obj_description(p.oid, 'pg_policy') IS NOT NULL
        UNION ALL
        SELECT 8, format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', o.place) FROM o WHERE o.relrowsecurity
        UNION ALL
        SELECT 8, format('ALTER TABLE %s FORCE ROW LEVEL SECURITY', o.place) FROM o WHERE o.relforcerowsecurity
        UNION ALL
        SELECT 8, format('ALTER TABLE %s REPLICA IDENTITY %s', o.place, CASE o.relreplident WHEN 'f' THEN 'FULL' ELSE 'NOTHING' END)
        FROM o WHERE o.relreplident IN ('f', 'n')
        UNION ALL
        SELECT 8, format('COMMENT ON TABLE %s IS %L', o.place, obj_description(o.oid, 'pg_class'))
        FROM o WHERE obj_description(o.oid, 'pg_class') IS NOT NULL
        UNION ALL
        SELECT 8, format('ALTER PUBLICATION %I ADD TABLE %s', p.pubname, o.place)
        FROM o JOIN pg_publication_rel r ON r.prrelid = o.oid JOIN pg_publication p ON p.oid = r.prpubid
    ) AS s(step, statement)
    ORDER BY s.step
$$;
COMMENT ON FUNCTION ingest.swap_statements(regclass, regclass) IS 'What gives the table beside a target its name, rights, policies and comments, and drops the target; renames: whether it needs the right to create in the schema';

-- LIKE has copied the old table as it was when the rebuild began. Vectors' indexes are made in the end; of full text, where the
-- language allows it, as ever.
CREATE FUNCTION ingest.came_meanwhile(target regclass, next regclass) RETURNS SETOF text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH parts (relation, part) AS (
        SELECT a.attrelid::regclass, format('column %I %s%s%s', a.attname, format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN ' NOT NULL' END,
                                            ' DEFAULT ' || pg_get_expr(d.adbin, d.adrelid))
        FROM pg_attribute a LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
        WHERE a.attrelid IN (target, next) AND a.attnum > 0 AND NOT a.attisdropped AND a.attname <> ingest.embedding_of(target)
        UNION ALL
        SELECT c.conrelid::regclass, format('constraint %s', pg_get_constraintdef(c.oid))
        FROM pg_constraint c WHERE c.conrelid IN (target, next) AND c.contype IN ('c', 'f', 'p', 'u', 'x')
        UNION ALL
        SELECT r.oid::regclass, format('index %s', x.description)
        FROM pg_class r, LATERAL ingest.indexes_of(r.oid) x
        WHERE r.oid IN (target, next) AND NOT x.on_embedding AND strpos(x.description, 'to_tsvector(') = 0
        UNION ALL
        SELECT r.oid::regclass, format('storage parameter %s', o) FROM pg_class r, unnest(r.reloptions) AS o WHERE r.oid IN (target, next)
        UNION ALL
        SELECT r.oid::regclass, format('owner %s', r.relowner::regrole) FROM pg_class r WHERE r.oid IN (target, next)
    )
    (SELECT p.part FROM parts p WHERE p.relation = target EXCEPT SELECT p.part FROM parts p WHERE p.relation = next)
    UNION ALL
    (SELECT p.part || ' (gone)' FROM parts p WHERE p.relation = next EXCEPT SELECT p.part || ' (gone)' FROM parts p WHERE p.relation = target)
$$;
COMMENT ON FUNCTION ingest.came_meanwhile(regclass, regclass) IS 'What a target has, or has no more, otherwise than the table that was made beside it';

-- Keeps everybody out who could change what a pipeline's documents or chunks are, in the order in which a worker locks.
CREATE FUNCTION ingest.hold_pipeline(pipeline_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM ingest.require_read_committed('changing how a pipeline makes vectors', 'does not see all documents that it would queue');
    LOCK TABLE ingest.documents IN SHARE ROW EXCLUSIVE MODE;
    PERFORM FROM ingest.queue q WHERE q.pipeline_id = hold_pipeline.pipeline_id AND q.claimed_by IS NOT NULL FOR UPDATE;
END $$;
COMMENT ON FUNCTION ingest.hold_pipeline(int) IS 'Keeps writers of documents out until the transaction ends, and waits for the worker to write what it is writing';

CREATE FUNCTION ingest.keys_without_document(pipeline text, keys text[]) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(k.key), '{}') FROM unnest(keys) AS k(key)
    WHERE NOT EXISTS (SELECT FROM ingest.documents d WHERE d.pipeline = keys_without_document.pipeline AND d.key = k.key)
$$;
COMMENT ON FUNCTION ingest.keys_without_document(text, text[]) IS 'Those of these keys that no document of the pipeline has';

CREATE FUNCTION ingest.new_generation(pipeline_id int) RETURNS void
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    UPDATE ingest.pipeline p SET generation = p.generation + 1 WHERE p.pipeline_id = new_generation.pipeline_id
$$;
COMMENT ON FUNCTION ingest.new_generation(int) IS 'Voids what is being made with the definition as it was';

CREATE FUNCTION ingest.former_target(pipeline_id int) RETURNS regclass
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN s.successor_of IS NULL THEN s.target ELSE p.target END
    FROM ingest.pipeline s LEFT JOIN ingest.pipeline p ON p.pipeline_id = s.successor_of
    WHERE s.pipeline_id = former_target.pipeline_id AND s.reuses
      AND (s.successor_of IS NULL
           OR p.reuses AND (p.model, p.dimensions, p.base_url, p.request) IS NOT DISTINCT FROM (s.model, s.dimensions, s.base_url, s.request))
$$;
COMMENT ON FUNCTION ingest.former_target(int) IS 'The table whose vectors serve a pipeline where a text is the same: its own, or for a successor that only cuts in another way its pipeline''s; null for none';

-- The documents that a successor begins with. The pipeline is held (hold_pipeline).
CREATE FUNCTION ingest.queue_for_successor(successor int) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    queued bigint;
    bytes bigint;
    serving regclass;
BEGIN
    -- All that will be in its table is made as it is defined now.
    UPDATE ingest.pipeline s SET reuses = true WHERE s.pipeline_id = successor AND NOT s.reuses;
    serving := ingest.former_target(successor);
    WITH added AS (
        INSERT INTO ingest.queue AS q (document_id, pipeline_id, bytes, revised)
        SELECT d.id, s.pipeline_id, coalesce(octet_length(d.content), d.source_bytes, 0),
               serving IS NOT NULL
               AND NOT EXISTS (SELECT FROM ingest.failures f WHERE f.document_id = d.id AND NOT f.rebuild)
               AND NOT EXISTS (SELECT FROM ingest.queue w WHERE w.document_id = d.id AND w.pipeline_id = s.successor_of)
        FROM ingest.pipeline s JOIN ingest.documents d ON d.pipeline = s.name
        WHERE s.pipeline_id = successor
        RETURNING q.bytes
    )
    SELECT count(*), coalesce(sum(a.bytes), 0) INTO queued, bytes FROM added a;
    INSERT INTO ingest.counter (pipeline_id, documents, queued, queued_bytes) VALUES (successor, queued, queued, bytes);
    PERFORM ingest.new_generation(s.successor_of) FROM ingest.pipeline s WHERE s.pipeline_id = successor;
    RETURN queued;
END $$;
COMMENT ON FUNCTION ingest.queue_for_successor(int) IS 'Queues all documents of a pipeline for its successor';

CREATE FUNCTION ingest.remove_successor(pipeline_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    successor int := (SELECT s.pipeline_id FROM ingest.pipeline s WHERE s.successor_of = remove_successor.pipeline_id);
    gone ingest.pipeline;
BEGIN
    IF successor IS NULL THEN
        RETURN;
    END IF;
    PERFORM ingest.require_read_committed('giving up a rebuild', 'does not see all that is queued for it');
    LOCK TABLE ingest.documents IN SHARE ROW EXCLUSIVE MODE;
    DELETE FROM ingest.queue q WHERE q.pipeline_id = successor;
    DELETE FROM ingest.pipeline p WHERE p.pipeline_id = successor RETURNING p.* INTO gone;
    DELETE FROM ingest.failures f WHERE f.pipeline = gone.name AND f.rebuild;
    DELETE FROM ingest.counter_delta c WHERE c.pipeline_id = successor;
    DELETE FROM ingest.counter c WHERE c.pipeline_id = successor;
    PERFORM ingest.new_generation(remove_successor.pipeline_id);
END $$;
COMMENT ON FUNCTION ingest.remove_successor(int) IS 'Deletes what is known of a pipeline''s successor, but for its table';

CREATE FUNCTION ingest.new_failures(pipeline_id int) RETURNS bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT count(*)
    FROM ingest.pipeline s JOIN ingest.failures f ON f.pipeline = s.name AND f.rebuild
    WHERE s.successor_of = new_failures.pipeline_id
      AND NOT EXISTS (SELECT FROM ingest.failures o WHERE o.document_id = f.document_id AND NOT o.rebuild)
$$;
COMMENT ON FUNCTION ingest.new_failures(int) IS 'How many documents failed in a pipeline''s successor and not in itself';

-- What a worker looks at before it takes locks. While documents keep coming, some always wait: near is when so few do that they
-- are carried over.
CREATE FUNCTION ingest.successor_standing(successor int) RETURNS text
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE WHEN s.paused OR t.queued > 1000 THEN 'behind'
                WHEN NOT s.accepts_failures AND ingest.new_failures(s.successor_of) > 0 THEN 'behind'
                WHEN t.queued > 0 THEN 'near'
                ELSE 'complete' END
    FROM ingest.pipeline s JOIN ingest.totals t USING (pipeline_id)
    WHERE s.pipeline_id = successor
$$;
COMMENT ON FUNCTION ingest.successor_standing(int) IS 'Whether a successor has all documents (complete), all but a few (near), or neither, or something keeps it from taking its pipeline''s place (behind)';

-- One part for each index: that of the whole queue may be long.
CREATE FUNCTION ingest.waiting_for(pipeline_id int) RETURNS SETOF bigint
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT q.document_id FROM ingest.queue q
    WHERE q.pipeline_id = waiting_for.pipeline_id AND q.claimed_by IS NULL AND q.retry_at IS NULL
    UNION
    SELECT q.document_id FROM ingest.queue q WHERE q.claimed_by IS NOT NULL AND q.pipeline_id = waiting_for.pipeline_id
    UNION
    SELECT q.document_id FROM ingest.queue q WHERE q.retry_at IS NOT NULL AND q.pipeline_id = waiting_for.pipeline_id
$$;
COMMENT ON FUNCTION ingest.waiting_for(int) IS 'The documents in a pipeline''s queue, in flight or not';

CREATE FUNCTION ingest.keys_waiting_for(pipeline_id int) RETURNS text[]
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT ARRAY(SELECT d.key FROM ingest.waiting_for(keys_waiting_for.pipeline_id) AS w(id) JOIN ingest.documents d ON d.id = w.id)
$$;
COMMENT ON FUNCTION ingest.keys_waiting_for(int) IS 'The keys of the documents in a pipeline''s queue';

CREATE FUNCTION ingest.successor_is_level(successor int) RETURNS boolean
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT NOT EXISTS (
        SELECT FROM ingest.pipeline s, ingest.waiting_for(s.pipeline_id) AS w(document_id)
        WHERE s.pipeline_id = successor
          AND NOT EXISTS (SELECT FROM ingest.queue q WHERE q.document_id = w.document_id AND q.pipeline_id = s.successor_of))
$$;
COMMENT ON FUNCTION ingest.successor_is_level(int) IS 'Whether all that waits for a successor waits for its pipeline, too';

CREATE FUNCTION ingest.failed_anew(successor int) RETURNS text[]
LANGUAGE sql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
    SELECT coalesce(array_agg(f.key), '{}')
    FROM ingest.pipeline s JOIN ingest.failures f ON f.pipeline = s.name AND f.rebuild
    WHERE s.pipeline_id = successor AND NOT s.accepts_failures
$$;
COMMENT ON FUNCTION ingest.failed_anew(int) IS 'Keys of the documents that failed in a successor, unless that is accepted';

-- Before the tables are swapped. What is on its way into either table is waited for first, so that the statements after see it.
CREATE FUNCTION ingest.hold_for_switch(successor int) RETURNS text[]
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    replaced int := (SELECT s.successor_of FROM ingest.pipeline s WHERE s.pipeline_id = successor);
    waiting bigint[];
BEGIN
    LOCK TABLE ingest.documents IN SHARE ROW EXCLUSIVE MODE;
    IF coalesce(ingest.successor_standing(successor), 'behind') = 'behind' THEN
        RETURN NULL;
    END IF;
    waiting := ARRAY(SELECT ingest.waiting_for(successor));
    PERFORM FROM ingest.queue q WHERE q.document_id = ANY (waiting) FOR UPDATE;
    IF NOT ingest.successor_is_level(successor) THEN
        RETURN NULL;
    END IF;
    PERFORM FROM ingest.pipeline p WHERE p.pipeline_id IN (replaced, successor) ORDER BY p.pipeline_id FOR UPDATE;
    RETURN ingest.keys_waiting_for(successor);
END $$;
COMMENT ON FUNCTION ingest.hold_for_switch(int) IS 'Keeps everybody from the documents of a pipeline while its successor takes its place, and returns the keys of those that wait for both; null when it cannot yet';

-- What waits for the pipeline alone the successor has already; what waits for the successor waits for the pipeline from now on.
CREATE FUNCTION ingest.carry_queue(successor int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    replaced int := (SELECT s.successor_of FROM ingest.pipeline s WHERE s.pipeline_id = successor);
    waiting bigint[] := ARRAY(SELECT ingest.waiting_for(successor));
    superseded bigint[] := ARRAY(SELECT ingest.waiting_for(replaced));
BEGIN
    -- By key: a row that another worker claims or frees meanwhile is in one part of the queue or in another.
    DELETE FROM ingest.queue q WHERE q.document_id = ANY (superseded) AND q.pipeline_id = replaced;
    UPDATE ingest.queue q SET pipeline_id = replaced, claimed_by = NULL, claim_token = NULL
    WHERE q.document_id = ANY (waiting) AND q.pipeline_id = successor;
END $$;
COMMENT ON FUNCTION ingest.carry_queue(int) IS 'Gives a pipeline the queue of its successor, which takes its place';

CREATE FUNCTION ingest.take_place(successor int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    s ingest.pipeline;
BEGIN
    -- The differences of both counters become one: others may be folding them.
    INSERT INTO ingest.counter_delta (pipeline_id, documents, queued, queued_bytes, failed, chunks, tokens, reused_tokens)
    SELECT o.pipeline_id, n.documents - o.documents, n.queued - o.queued, n.queued_bytes - o.queued_bytes, n.failed - o.failed,
           n.chunks - o.chunks, n.tokens - o.tokens, n.reused_tokens
    FROM ingest.pipeline p JOIN ingest.totals n ON n.pipeline_id = p.pipeline_id JOIN ingest.totals o ON o.pipeline_id = p.successor_of
    WHERE p.pipeline_id = successor;
    DELETE FROM ingest.counter_delta c WHERE c.pipeline_id = successor;
    DELETE FROM ingest.counter c WHERE c.pipeline_id = successor;
    DELETE FROM ingest.pipeline p WHERE p.pipeline_id = successor RETURNING p.* INTO s;
    DELETE FROM ingest.failures f WHERE f.pipeline = s.name AND NOT f.rebuild;
    UPDATE ingest.failures f SET rebuild = false WHERE f.pipeline = s.name AND f.rebuild;
    UPDATE ingest.pipeline p
    SET model = s.model, dimensions = s.dimensions, base_url = s.base_url, trusted = s.trusted, api_key = s.api_key,
        request = s.request, target = s.target, layout = s.layout, chunk_tokens = s.chunk_tokens, chunk_overlap = s.chunk_overlap,
        splitter = s.splitter, limits = s.limits, concurrency = s.concurrency, batch_size = s.batch_size,
        max_attempts = s.max_attempts, index = s.index, on_success = s.on_success, language = s.language, reuses = s.reuses,
        generation = p.generation + 1,
        blocked_error = NULL, blocked_until = NULL, blocked_times = 0
    WHERE p.pipeline_id = s.successor_of;
END $$;
COMMENT ON FUNCTION ingest.take_place(int) IS 'Gives a pipeline the definition, counters and failures of its successor';

CREATE FUNCTION ingest.cancel_rebuild(pipeline text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'cancel_rebuild_wrapper';
COMMENT ON FUNCTION ingest.cancel_rebuild(text) IS 'Gives up the new vectors that alter_pipeline() asked for and drops their table; the pipeline stays as it is. False when none were being made';

CREATE FUNCTION ingest.finish_rebuild(pipeline text) RETURNS boolean
LANGUAGE c VOLATILE STRICT PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'finish_rebuild_wrapper';
COMMENT ON FUNCTION ingest.finish_rebuild(text) IS 'Has a rebuild take the old one''s place without the documents that failed in it: search finds these no more. False when there is none';

CREATE VIEW ingest.rebuilds WITH (security_barrier) AS
SELECT a.pipeline, p.model, p.dimensions, p.chunk_tokens, p.chunk_overlap, p.splitter, p.target,
       CASE WHEN a.state IN ('paused', 'blocked') OR a.pending + a.in_flight > 0 THEN a.state
            WHEN NOT p.accepts_failures
                 AND EXISTS (SELECT FROM ingest.failures f
                             WHERE f.pipeline = p.name AND f.rebuild
                               AND NOT EXISTS (SELECT FROM ingest.failures o WHERE o.document_id = f.document_id AND NOT o.rebuild))
            THEN 'failed'
            ELSE 'switching' END AS state,
       a.documents, a.embedded, a.pending, a.in_flight, a.failed, a.percent, a.bar, a.chunks, a.tokens, a.documents_per_minute,
       a.tokens_per_minute, a.eta, a.cost_usd, a.last_error, p.created_at AS started_at
FROM ingest.progress_of_all a JOIN ingest.pipeline p USING (pipeline_id)
WHERE a.successor_of IS NOT NULL
ORDER BY a.pipeline;
COMMENT ON VIEW ingest.rebuilds IS 'Pipelines whose vectors alter_pipeline() has made anew: the definition to come and how far it is. A row goes when it is in use';
COMMENT ON COLUMN ingest.rebuilds.target IS 'the table of the new vectors, which takes the old one''s name in the end';
COMMENT ON COLUMN ingest.rebuilds.state IS 'running, cooling_down, paused, blocked, failed (documents fail that are embedded now: retry(), finish_rebuild() or cancel_rebuild()), or switching (the index is built, and the table is waited for)';
COMMENT ON COLUMN ingest.rebuilds.percent IS 'embedded of documents';
COMMENT ON COLUMN ingest.rebuilds.last_error IS 'why it is blocked, else the latest failure';
COMMENT ON COLUMN ingest.rebuilds.documents IS 'documents of the pipeline';
COMMENT ON COLUMN ingest.rebuilds.embedded IS 'documents whose present content has its new vectors';
COMMENT ON COLUMN ingest.rebuilds.pending IS 'documents waiting for them';
COMMENT ON COLUMN ingest.rebuilds.in_flight IS 'documents that a worker holds for it';
COMMENT ON COLUMN ingest.rebuilds.failed IS 'documents that failed with the new definition';
COMMENT ON COLUMN ingest.rebuilds.chunks IS 'chunks in the new table';
COMMENT ON COLUMN ingest.rebuilds.tokens IS 'tokens of these chunks';
COMMENT ON COLUMN ingest.rebuilds.cost_usd IS 'price of tokens by the model catalogue, in US dollars';
COMMENT ON COLUMN ingest.rebuilds.started_at IS 'when alter_pipeline() asked for it';

REVOKE ALL ON FUNCTION ingest.embedding_of(regclass), ingest.not_carried(regclass, oid), ingest.next_name(regclass), ingest.next_table(regclass, text, text),
    ingest.relations_of(regclass), ingest.next_statements(regclass, regclass, text), ingest.indexes_of(regclass),
    ingest.missing_indexes(regclass, regclass), ingest.swap_statements(regclass, regclass), ingest.hold_pipeline(int),
    ingest.keys_without_document(text, text[]), ingest.new_generation(int), ingest.former_target(int), ingest.queue_for_successor(int),
    ingest.remove_successor(int), ingest.successor_standing(int), ingest.waiting_for(int), ingest.keys_waiting_for(int), ingest.successor_is_level(int),
    ingest.came_meanwhile(regclass, regclass), ingest.failed_anew(int), ingest.hold_for_switch(int), ingest.carry_queue(int),
    ingest.take_place(int), ingest.new_failures(int) FROM PUBLIC;
