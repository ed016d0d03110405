-- Watching tables that are there already. Each row is a document of ingest.documents without content: triggers on the
-- table add, touch and remove these documents, and the worker reads a row's content when it takes its document.

CREATE FUNCTION ingest.watch(source regclass, content text, pipeline text = 'default', key text = NULL, metadata text = NULL)
RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'watch_wrapper';
COMMENT ON FUNCTION ingest.watch(regclass, text, text, text, text)
    IS 'Keeps a table embedded: content and metadata are SQL expressions over a row, key a column that names the documents (else the primary key). Again: changes them, and looks through the table anew';

CREATE FUNCTION ingest.unwatch(source regclass, pipeline text = 'default') RETURNS void
LANGUAGE c VOLATILE PARALLEL UNSAFE SET search_path = pg_catalog, pg_temp AS 'MODULE_PATHNAME', 'unwatch_wrapper';
COMMENT ON FUNCTION ingest.unwatch(regclass, text) IS 'Ends watch(): removes its triggers, and the documents and chunks of the table''s rows';

CREATE VIEW ingest.watches WITH (security_barrier) AS
SELECT p.name AS pipeline, w.source, w.content, w.metadata, w.key,
       CASE w.phase WHEN 'sweep' THEN 'checking' WHEN 'scan' THEN 'reading' ELSE 'watching' END AS state, w.created_at
FROM ingest.watch w JOIN ingest.pipeline p USING (pipeline_id) JOIN ingest.visible_pipelines v USING (pipeline_id);
COMMENT ON VIEW ingest.watches IS 'The watched tables. What is in the way of one is in ingest.progress, last_error';
COMMENT ON COLUMN ingest.watches.state IS 'checking (which of its documents'' rows are gone), reading (which rows there are), watching (every row has its document; how many are embedded says ingest.progress)';
COMMENT ON COLUMN ingest.watches.source IS 'the watched table';
COMMENT ON COLUMN ingest.watches.content IS 'SQL expression over a row: the text to embed';
COMMENT ON COLUMN ingest.watches.metadata IS 'SQL expression over a row: the metadata of its chunks; null for none';
COMMENT ON COLUMN ingest.watches.key IS 'column that names the documents; null for the primary key';

CREATE FUNCTION ingest.primary_key(source oid) RETURNS text[]
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT array_agg(a.attname::text ORDER BY k.place)
    FROM pg_index i
    CROSS JOIN LATERAL unnest(i.indkey::int2[]) WITH ORDINALITY AS k(number, place)
    JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = k.number
    WHERE i.indrelid = primary_key.source AND i.indisprimary AND k.place <= i.indnkeyatts
$$;
COMMENT ON FUNCTION ingest.primary_key(oid) IS 'The columns of a table''s primary key; null without one';
REVOKE ALL ON FUNCTION ingest.primary_key(oid) FROM PUBLIC;

-- Texts are made with format(), which calls the types' own output functions: a cast may be somebody's function.
CREATE FUNCTION ingest.row_key(columns text[], alias text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT CASE cardinality(columns) WHEN 1 THEN min(e.text)
                ELSE format('jsonb_build_array(%s)::text', string_agg(e.text, ', ' ORDER BY e.place)) END
    FROM (SELECT format('format(''%%s'', %s.%I)', alias, c.name) AS text, c.place
          FROM unnest(columns) WITH ORDINALITY AS c(name, place)) AS e
$$;
COMMENT ON FUNCTION ingest.row_key(text[], text) IS 'SQL that makes source_key of a row';
REVOKE ALL ON FUNCTION ingest.row_key(text[], text) FROM PUBLIC;

-- Why the texts are cut: an index entry has room for 2,704 bytes, and what is too long for one fails the user's statement.
CREATE FUNCTION ingest.row_name(text text) RETURNS text
LANGUAGE sql IMMUTABLE PARALLEL SAFE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('CASE WHEN octet_length(%1$s) > 1000 THEN left(%1$s, 200) || '' '' || left(encode(sha256(convert_to(%1$s, ''UTF8'')), ''hex''), 32) ELSE %1$s END',
                  row_name.text)
$$;
COMMENT ON FUNCTION ingest.row_name(text) IS 'SQL that makes a document''s key of a text, given as SQL; of a long one its beginning and a hash';
REVOKE ALL ON FUNCTION ingest.row_name(text) FROM PUBLIC;

-- Nobody learns through names of documents what the pipeline's owner may not read.
CREATE FUNCTION ingest.can_read_key(w ingest.watch) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT w.key IS NULL OR EXISTS (
        SELECT FROM pg_attribute a JOIN ingest.pipeline p ON p.pipeline_id = w.pipeline_id
        WHERE a.attrelid = w.source AND a.attname = w.key AND a.attnum > 0 AND NOT a.attisdropped
          AND has_column_privilege(p.owner::oid, a.attrelid, a.attnum, 'SELECT'))
$$;
COMMENT ON FUNCTION ingest.can_read_key(ingest.watch) IS 'Whether the column that names the documents is there for the pipeline''s owner';
REVOKE ALL ON FUNCTION ingest.can_read_key(ingest.watch) FROM PUBLIC;

-- What a document is named after, and about how much there is to read of it, without reading it.
CREATE FUNCTION ingest.row_columns(w ingest.watch, source oid, keys text[], alias text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format('%s AS source_key, %s AS key, %s AS bytes', ingest.row_key(keys, alias),
                  coalesce(min(format('CASE WHEN %1$s.%2$I IS NULL THEN %3$s ELSE %4$s END', alias, a.attname,
                                      ingest.row_name(ingest.row_key(keys, alias)),
                                      ingest.row_name(format('format(''%%s'', %s.%I)', alias, a.attname))))
                           FILTER (WHERE a.attname = w.key AND ingest.can_read_key(w)),
                           ingest.row_name(ingest.row_key(keys, alias))),
                  format('least(0::bigint%s, 2147483647)::int',
                         string_agg(format(' + coalesce(pg_column_size(%s.%I), 0)', alias, a.attname), '')
                         FILTER (WHERE a.attgenerated <> 'v' AND (w.columns IS NULL OR a.attname = ANY (w.columns)))))
    FROM pg_attribute a WHERE a.attrelid = row_columns.source AND a.attnum > 0 AND NOT a.attisdropped
$$;
COMMENT ON FUNCTION ingest.row_columns(ingest.watch, oid, text[], text) IS 'SQL of what staging_sql() takes of a row';
REVOKE ALL ON FUNCTION ingest.row_columns(ingest.watch, oid, text[], text) FROM PUBLIC;

-- Three statements: the first adds documents for rows that have none, and waits for whoever is adding the same one, whichever unique
-- index tells; the second removes those whose names are others now, and the first adds them again; the third gives the rest a new
-- version, $3. Whatever came or went in between, they are run until each row has its document.
CREATE FUNCTION ingest.staging_sql(w ingest.watch, rows text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        $sql$
        INSERT INTO ingest.documents (pipeline, key, watch_id, source_key, source_bytes, source_version)
        SELECT %1$L, CASE WHEN r.taken THEN r.key || %2$L || %7$s || ')' ELSE r.key END, %3$s, r.source_key, r.bytes, $3
        FROM (SELECT s.source_key, s.key, s.bytes, ingest.is_key_taken(%1$L, s.key, %3$s, s.source_key) OR %4$s AS taken
              FROM (SELECT q.source_key, %5$L || q.key AS key, q.bytes FROM (%6$s) AS q
                    WHERE NOT EXISTS (SELECT FROM ingest.documents d WHERE d.watch_id = %3$s AND d.source_key = q.source_key)) AS s) AS r
        ON CONFLICT DO NOTHING
        $sql$,
        p.name, format(' (%s ', w.source), w.watch_id,
        CASE WHEN w.key IS NULL THEN 'false' ELSE 'row_number() OVER (PARTITION BY s.key ORDER BY s.source_key) > 1' END,
        w.key_prefix, rows, ingest.row_name('r.source_key'))
    FROM ingest.pipeline p WHERE p.pipeline_id = w.pipeline_id
$$;
COMMENT ON FUNCTION ingest.staging_sql(ingest.watch, text)
    IS 'SQL that makes documents of rows (source_key, key, bytes) that have none; a key that is another document''s is told apart by table and primary key';
REVOKE ALL ON FUNCTION ingest.staging_sql(ingest.watch, text) FROM PUBLIC;

-- Which name is free, only statements can tell that come after the one by which another row gave it up, or took it.
CREATE FUNCTION ingest.renaming_sql(w ingest.watch, rows text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        $sql$
        DELETE FROM ingest.documents AS d
        USING (SELECT q.source_key, %1$L || q.key AS key, ' ' || %4$s || ')' AS ending FROM (%3$s) AS q) AS s
        WHERE d.watch_id = %2$s AND d.source_key = s.source_key AND d.key <> s.key
          AND (left(d.key, length(s.key) + 2) <> s.key || ' (' OR right(d.key, length(s.ending)) <> s.ending)
        $sql$, w.key_prefix, w.watch_id, rows, ingest.row_name('q.source_key'))
    WHERE (w.key IS NOT NULL OR w.refresh) AND ingest.can_read_key(w)
$$;
COMMENT ON FUNCTION ingest.renaming_sql(ingest.watch, text)
    IS 'SQL that removes the documents of rows (source_key, key, bytes) that have other keys now; null where none can';
REVOKE ALL ON FUNCTION ingest.renaming_sql(ingest.watch, text) FROM PUBLIC;

CREATE FUNCTION ingest.touching_sql(w ingest.watch, rows text) RETURNS text
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT format(
        $sql$
        UPDATE ingest.documents AS d SET source_version = $3, source_bytes = q.bytes FROM (%2$s) AS q
        WHERE d.watch_id = %1$s AND d.source_key = q.source_key AND d.source_version <> $3
        $sql$, w.watch_id, rows)
$$;
COMMENT ON FUNCTION ingest.touching_sql(ingest.watch, text) IS 'SQL that queues the documents of rows (source_key, key, bytes) anew';
REVOKE ALL ON FUNCTION ingest.touching_sql(ingest.watch, text) FROM PUBLIC;

-- A function, because an index is to be used for each row, however short the table looked to the planner.
CREATE FUNCTION ingest.is_key_taken(pipeline text, key text, watch_id int, source_key text) RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    RETURN EXISTS (SELECT FROM ingest.documents d WHERE d.pipeline = is_key_taken.pipeline AND d.key = is_key_taken.key
                   AND (d.watch_id IS DISTINCT FROM is_key_taken.watch_id OR d.source_key <> is_key_taken.source_key));
END $$;
COMMENT ON FUNCTION ingest.is_key_taken(text, text, int, text) IS 'Whether the key is that of a document of another row';
REVOKE ALL ON FUNCTION ingest.is_key_taken(text, text, int, text) FROM PUBLIC;

CREATE FUNCTION ingest.forget_source(watch_id int, most int) RETURNS bigint
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    removed bigint;
BEGIN
    DELETE FROM ingest.documents d
    WHERE d.id = ANY (ARRAY(SELECT o.id FROM ingest.documents o WHERE o.watch_id = forget_source.watch_id LIMIT most));
    GET DIAGNOSTICS removed = ROW_COUNT;
    RETURN removed;
END $$;
COMMENT ON FUNCTION ingest.forget_source(int, int) IS 'Deletes at most so many documents of a watched table, with their chunks; returns how many';
REVOKE ALL ON FUNCTION ingest.forget_source(int, int) FROM PUBLIC;

CREATE FUNCTION ingest.forget_all_of_source(watch_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    WHILE ingest.forget_source(watch_id, 20000) > 0 LOOP
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.forget_all_of_source(int) IS 'Removes all documents of a watched table with their chunks';
REVOKE ALL ON FUNCTION ingest.forget_all_of_source(int) FROM PUBLIC;

-- The settings make the texts of keys the same whoever writes. The documents' own triggers must fire where changes that
-- were replicated are applied, too. Documents are found by index, whatever the planner knows of a table that grows meanwhile.
CREATE FUNCTION ingest.source_changed() RETURNS trigger
LANGUAGE plpgsql SECURITY DEFINER
SET search_path = pg_catalog, pg_temp SET session_replication_role = 'origin' SET enable_seqscan = off SET enable_mergejoin = off
SET timezone = 'UTC' SET datestyle = 'ISO, YMD' SET intervalstyle = 'postgres' SET extra_float_digits = 1 SET bytea_output = 'hex' AS $$
DECLARE
    w ingest.watch;
    by_row boolean := TG_LEVEL = 'ROW';
    old_rows text := CASE WHEN by_row THEN '(SELECT ($1).*)' ELSE 'old_rows' END;
    new_rows text := CASE WHEN by_row THEN '(SELECT ($2).*)' ELSE 'new_rows' END;
    keys text[];
    columns text[];
    compared text[];
    touched text;
    gone text;
    is_vague boolean;
    left_over bigint := 0;
    done bigint;
    version bigint;
    statements text[];
    statement text;
    renaming text;
BEGIN
    -- A dump that is restored holds the documents, too.
    IF current_setting('check_function_bodies') = 'off' AND current_setting('row_security') = 'off' THEN
        RETURN NULL;
    END IF;
    SELECT * INTO w FROM ingest.watch v WHERE v.watch_id = TG_ARGV[0]::int;
    IF NOT FOUND THEN
        -- The snapshot may be older than the watch.
        IF ingest.has_old_snapshot() THEN
            BEGIN
                INSERT INTO ingest.watch (watch_id, pipeline_id, source, content, key_prefix, key_columns, phase)
                VALUES (TG_ARGV[0]::int, 0, TG_RELID, '', '', '{}', 'done') ON CONFLICT DO NOTHING;
                DELETE FROM ingest.watch v WHERE v.watch_id = TG_ARGV[0]::int;
            EXCEPTION WHEN serialization_failure THEN
                RAISE EXCEPTION 'could not serialize access because table % is watched since the transaction began', TG_RELID::regclass
                    USING ERRCODE = 'serialization_failure', HINT = 'Try the transaction again.';
            END;
        END IF;
        RETURN NULL;
    -- A partition that was detached, or a table that came out of another database's dump.
    ELSIF w.source IS DISTINCT FROM TG_RELID AND w.source IS DISTINCT FROM pg_partition_root(TG_RELID) THEN
        RETURN NULL;
    END IF;
    IF ingest.has_old_snapshot() THEN
        -- Raises 40001 where it was defined anew since: what that reads and how it names is not known here.
        PERFORM FROM ingest.watch v WHERE v.watch_id = w.watch_id FOR KEY SHARE;
    END IF;

    IF TG_OP = 'TRUNCATE' AND TG_RELID = w.source AND NOT ingest.has_old_snapshot() THEN
        PERFORM ingest.forget_all_of_source(w.watch_id);
        RETURN NULL;
    END IF;
    keys := ingest.primary_key(w.source);
    IF TG_OP = 'TRUNCATE' OR keys IS DISTINCT FROM w.key_columns THEN
        -- Which documents are those of a partition, of rows that this transaction does not see, or of a key that is another one now,
        -- the worker finds out. Until it begins, one writer need not wait for another to say so.
        UPDATE ingest.watch v SET phase = 'sweep', position = NULL
        WHERE v.watch_id = w.watch_id AND (TG_OP = 'TRUNCATE' OR v.phase <> 'sweep' OR v.position IS NOT NULL);
        IF FOUND THEN
            PERFORM ingest.wake();
        END IF;
        IF TG_OP = 'TRUNCATE' OR keys IS NULL THEN
            RETURN NULL;
        END IF;
    END IF;
    IF NOT ingest.can_read_key(w) THEN
        -- Documents keep their names, and new ones have the primary key's, until the worker can give them theirs.
        UPDATE ingest.watch v
        SET phase = CASE v.phase WHEN 'sweep' THEN 'sweep' ELSE 'scan' END, position = NULL, refresh = true
        WHERE v.watch_id = w.watch_id AND (v.phase = 'done' OR v.position IS NOT NULL OR NOT v.refresh);
        IF FOUND THEN
            PERFORM ingest.wake();
        END IF;
    END IF;

    version := nextval('ingest.source_version');
    -- Whether another row may have the same key: until a deferred constraint is looked at, and among the tables that inherit.
    is_vague := EXISTS (SELECT FROM pg_index i WHERE i.indrelid = w.source AND i.indisprimary AND NOT i.indimmediate)
             OR EXISTS (SELECT FROM pg_inherits i JOIN pg_class c ON c.oid = i.inhparent WHERE i.inhparent = w.source AND c.relkind = 'r');
    IF TG_OP IN ('DELETE', 'UPDATE') THEN
        gone := format('SELECT %s AS source_key FROM %s AS o', ingest.row_key(keys, 'o'), old_rows);
    END IF;
    IF TG_OP IN ('INSERT', 'UPDATE') THEN
        touched := format('SELECT %s FROM %s AS n', ingest.row_columns(w, TG_RELID, keys, 'n'), new_rows);
    END IF;
    IF TG_OP = 'UPDATE' THEN
        -- Any column may hide a row from the pipeline's owner, or show it.
        IF (SELECT c.relrowsecurity FROM pg_class c WHERE c.oid = w.source) THEN
            w.columns := NULL;
        END IF;
        columns := ARRAY(SELECT DISTINCT c FROM unnest(w.columns || w.key) AS c WHERE c IS NOT NULL);
        compared := ARRAY(SELECT a.attname::text FROM pg_attribute a
                          WHERE a.attrelid = TG_RELID AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated <> 'v'
                            AND (w.columns IS NULL OR a.attname = ANY (columns)));
        gone := gone || format(' WHERE NOT EXISTS (SELECT FROM %s AS n WHERE %s = %s)',
                               new_rows, ingest.row_key(keys, 'n'), ingest.row_key(keys, 'o'));
        touched := touched || format(' LEFT JOIN %s AS o ON %s = %s WHERE o.%I IS NULL OR %s',
            old_rows, ingest.row_key(keys, 'o'), ingest.row_key(keys, 'n'), keys[1],
            -- The image of the values is compared, whatever their types make of equality. Without one of the columns nobody
            -- can tell, and the worker says so.
            CASE WHEN NOT columns <@ compared THEN 'true'
                 WHEN compared = '{}' THEN 'false'
                 ELSE (SELECT format('record_image_ne(ROW(%s), ROW(%s))', string_agg(format('o.%I', c), ', '), string_agg(format('n.%I', c), ', '))
                       FROM unnest(compared) AS c) END);
    END IF;

    IF gone IS NOT NULL THEN
        -- The worker may be adding a document for such a row just now, which the DELETE would not see: whoever adds it here, too,
        -- waits for that, or has the worker wait.
        IF w.phase <> 'done' THEN
            statement := ingest.staging_sql(w, format('SELECT g.source_key, g.source_key AS key, 0 AS bytes FROM (%s) AS g', gone));
            IF by_row THEN
                EXECUTE statement USING OLD, NEW, 0::bigint;
            ELSE
                EXECUTE statement USING NULL::int, NULL::int, 0::bigint;
            END IF;
        END IF;
        -- Where another row may have the key, the worker looks whether it is there.
        statement := format(CASE WHEN is_vague THEN 'UPDATE ingest.documents d SET source_version = $3 FROM (%s) AS g'
                                 ELSE 'DELETE FROM ingest.documents d USING (%s) AS g' END
                            || ' WHERE d.watch_id = %s AND d.source_key = g.source_key', gone, w.watch_id);
        IF by_row THEN
            EXECUTE statement USING OLD, NEW, version;
        ELSE
            EXECUTE statement USING NULL::int, NULL::int, version;
        END IF;
    END IF;
    IF touched IS NOT NULL THEN
        statement := format('SELECT count(%s) FROM (%s) AS q', CASE WHEN is_vague THEN 'DISTINCT q.source_key' ELSE '*' END, touched);
        IF by_row THEN
            EXECUTE statement INTO left_over USING OLD, NEW;
        ELSE
            EXECUTE statement INTO left_over;
        END IF;
        renaming := ingest.renaming_sql(w, touched);
        statements := array_remove(ARRAY[ingest.staging_sql(w, touched), renaming, ingest.touching_sql(w, touched)], NULL);
        -- More than once only where a document has another name now, or came or went in between.
        FOR attempt IN 1..20 LOOP
            EXIT WHEN left_over <= 0;
            FOREACH statement IN ARRAY statements LOOP
                IF by_row THEN
                    EXECUTE statement USING OLD, NEW, version;
                ELSE
                    EXECUTE statement USING NULL::int, NULL::int, version;
                END IF;
                GET DIAGNOSTICS done = ROW_COUNT;
                -- What was renamed is still to be added.
                CONTINUE WHEN statement = renaming;
                left_over := left_over - done;
                EXIT WHEN left_over <= 0;
            END LOOP;
        END LOOP;
        IF left_over > 0 THEN
            UPDATE ingest.watch v SET phase = 'sweep', position = NULL WHERE v.watch_id = w.watch_id;
            PERFORM ingest.wake();
        END IF;
    END IF;
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.source_changed() IS 'What the triggers on a watched table do: documents of new rows, of changed ones, and none of deleted ones';

CREATE FUNCTION ingest.attach_source(watch_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w ingest.watch;
    part regclass;
    event record;
BEGIN
    SELECT * INTO STRICT w FROM ingest.watch v WHERE v.watch_id = attach_source.watch_id;
    -- Partitions that were detached have nothing to tell any more.
    FOR event IN SELECT t.name, t.relation FROM ingest.source_triggers(w.watch_id) t
                 WHERE t.relation <> w.source AND t.relation NOT IN (SELECT p.relid FROM pg_partition_tree(w.source) p)
    LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', event.name, event.relation);
    END LOOP;
    -- A statement on a partitioned table fires its triggers, one on a partition those of the partition.
    FOR part IN SELECT w.source UNION SELECT t.relid FROM pg_partition_tree(w.source) t LOOP
        FOR event IN
            SELECT * FROM (VALUES ('insert', 'AFTER INSERT', 'REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT', NULL),
                                  ('update', 'AFTER UPDATE', 'REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows FOR EACH STATEMENT', NULL),
                                  ('delete', 'AFTER DELETE', 'REFERENCING OLD TABLE AS old_rows FOR EACH STATEMENT', NULL),
                                  ('truncate', 'AFTER TRUNCATE', 'FOR EACH STATEMENT', 'ALWAYS'),
                                  -- Changes that logical replication applies fire only such. Partitions get a copy.
                                  ('replicated', 'AFTER INSERT OR UPDATE OR DELETE', 'FOR EACH ROW', 'REPLICA')) AS e(name, moment, kind, mode)
            WHERE e.mode IS DISTINCT FROM 'REPLICA' OR part = w.source
        LOOP
            event.name := format('pg_ingest_watch_%s_%s', w.watch_id, event.name);
            CONTINUE WHEN (SELECT c.relkind = 'f' FROM pg_class c WHERE c.oid = part)
                       OR EXISTS (SELECT FROM pg_trigger t WHERE t.tgrelid = part AND t.tgname = event.name);
            EXECUTE format('CREATE TRIGGER %I %s ON %s %s EXECUTE FUNCTION ingest.source_changed(%L)',
                           event.name, event.moment, part, event.kind, w.watch_id);
            IF event.mode IS NOT NULL THEN
                EXECUTE format('ALTER TABLE %s ENABLE %s TRIGGER %I', part, event.mode, event.name);
            END IF;
        END LOOP;
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.attach_source(int) IS 'Puts the triggers of a watched table where they are missing, and takes them off what is no partition of it any more';
REVOKE ALL ON FUNCTION ingest.attach_source(int) FROM PUBLIC;

CREATE FUNCTION ingest.source_triggers(watch_id int) RETURNS TABLE (trigger oid, name name, relation regclass)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.oid, t.tgname, t.tgrelid::regclass FROM pg_trigger t
    WHERE t.tgfoid = 'ingest.source_changed()'::regprocedure AND t.tgparentid = 0
      AND t.tgname ~ format('^pg_ingest_watch_%s_', source_triggers.watch_id)
$$;
COMMENT ON FUNCTION ingest.source_triggers(int) IS 'The triggers of a watched table, without those that partitions have from it';
REVOKE ALL ON FUNCTION ingest.source_triggers(int) FROM PUBLIC;

CREATE FUNCTION ingest.detach_source(watch_id int) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    t record;
BEGIN
    FOR t IN SELECT * FROM ingest.source_triggers(detach_source.watch_id) LOOP
        EXECUTE format('DROP TRIGGER %I ON %s', t.name, t.relation);
    END LOOP;
END $$;
COMMENT ON FUNCTION ingest.detach_source(int) IS 'Takes the triggers off a watched table';
REVOKE ALL ON FUNCTION ingest.detach_source(int) FROM PUBLIC;

-- Types whose text says which value it is, and whose comparisons are Postgres's own.
CREATE FUNCTION ingest.is_key_type(type oid) RETURNS boolean
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    SELECT t.typtype = 'e' OR t.oid = ANY (ARRAY['bool', 'int2', 'int4', 'int8', 'oid', 'text', 'varchar', 'bpchar', 'name', '"char"',
        'uuid', 'numeric', 'float4', 'float8', 'date', 'timestamp', 'timestamptz', 'time', 'timetz', 'interval', 'bytea', 'inet',
        'cidr', 'macaddr', 'macaddr8', 'bit', 'varbit', 'pg_lsn', 'xid8']::regtype[]::oid[])
    FROM pg_type t WHERE t.oid = is_key_type.type
$$;
COMMENT ON FUNCTION ingest.is_key_type(oid) IS 'Whether a column of the type may be in the primary key of a watched table';
REVOKE ALL ON FUNCTION ingest.is_key_type(oid) FROM PUBLIC;

CREATE FUNCTION ingest.base_type(type oid) RETURNS oid
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp AS $$
    WITH RECURSIVE types AS (
        SELECT base_type.type AS type
        UNION ALL
        SELECT t.typbasetype FROM types JOIN pg_type t ON t.oid = types.type WHERE t.typtype = 'd'
    )
    SELECT types.type FROM types JOIN pg_type t ON t.oid = types.type WHERE t.typtype <> 'd'
$$;
COMMENT ON FUNCTION ingest.base_type(oid) IS 'What a domain is made of; other types themselves';
REVOKE ALL ON FUNCTION ingest.base_type(oid) FROM PUBLIC;

CREATE FUNCTION ingest.refuse_source(source regclass, pipeline text, key text, role oid) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    c record;
    p ingest.pipeline := ingest.pipeline_named(pipeline);
    problem text;
    advice text;
    code text := 'wrong_object_type';
BEGIN
    SELECT r.*, n.nspname INTO c FROM pg_class r JOIN pg_namespace n ON n.oid = r.relnamespace WHERE r.oid = source;
    IF NOT FOUND THEN
        problem := 'There is no such table.'; code := 'undefined_table';
    ELSIF c.relkind NOT IN ('r', 'p') THEN
        problem := format('It is a %s.', CASE c.relkind WHEN 'v' THEN 'view' WHEN 'm' THEN 'materialized view' WHEN 'f' THEN 'foreign table'
                                                      WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' WHEN 'c' THEN 'composite type'
                                                      ELSE 'relation without rows of its own' END);
        advice := 'Nothing tells when its rows change. Watch the tables that it reads, or insert into ingest.documents.';
    ELSIF c.relpersistence = 't' THEN
        problem := 'It is a temporary table.'; advice := 'The worker cannot read it. Insert into ingest.documents.';
    ELSIF source < 16384 OR c.nspname IN ('pg_catalog', 'information_schema', 'pg_toast') THEN
        problem := 'It is a table of the system.'; code := 'insufficient_privilege';
    ELSIF EXISTS (SELECT FROM ingest.pipeline t WHERE t.target = source) THEN
        problem := 'It is the target of a pipeline: its chunks would be embedded, too.';
    ELSIF EXISTS (SELECT FROM pg_depend d JOIN pg_extension e ON e.oid = d.refobjid AND d.refclassid = 'pg_extension'::regclass
                  WHERE d.classid = 'pg_class'::regclass AND d.objid = source AND d.deptype = 'e' AND e.extname = 'pg_ingest') THEN
        problem := 'It is a table of pg_ingest.';
    ELSIF c.relispartition THEN
        problem := 'It is a partition.';
        advice := format('Watch the partitioned table: %s.', pg_partition_root(source));
    ELSIF c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits i WHERE source IN (i.inhrelid, i.inhparent)) THEN
        problem := 'It inherits rows from or lends them to another table.';
        advice := 'Make it a partitioned table.';
    ELSIF ingest.primary_key(source) IS NULL THEN
        problem := 'It has no primary key.'; code := 'object_not_in_prerequisite_state';
        advice := format('ALTER TABLE %s ADD PRIMARY KEY (…);', source);
    ELSIF p.on_success = 'delete' THEN
        problem := format('Pipeline %L deletes its documents when they are embedded.', pipeline);
        code := 'object_not_in_prerequisite_state';
        advice := format('SELECT ingest.alter_pipeline(%L, on_success => ''keep'');', pipeline);
    END IF;
    IF problem IS NULL THEN
        SELECT format('Column %I of its primary key is of type %s.', a.attname, format_type(a.atttypid, a.atttypmod)) INTO problem
        FROM pg_attribute a
        WHERE a.attrelid = source AND a.attname = ANY (ingest.primary_key(source)) AND NOT ingest.is_key_type(ingest.base_type(a.atttypid))
        LIMIT 1;
        code := 'feature_not_supported';
        advice := 'Keys may be numbers, texts, uuid, enums, dates and times, bytea, bits and network addresses.';
    END IF;
    IF problem IS NOT NULL THEN
        RAISE EXCEPTION 'table % cannot be watched', source
            USING ERRCODE = code, DETAIL = problem, HINT = coalesce(advice, 'Watch a table of your own.');
    END IF;
    IF NOT has_table_privilege(role, source, 'TRIGGER') THEN
        RAISE EXCEPTION 'permission denied for table %', source
            USING ERRCODE = 'insufficient_privilege',
                  DETAIL = 'Whoever has a table watched needs TRIGGER on it, and the pipeline''s owner SELECT.',
                  HINT = format('GRANT SELECT, TRIGGER ON %s TO …;', source);
    END IF;
    IF key IS NOT NULL AND NOT EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = source AND a.attname = key AND a.attnum > 0
                                       AND NOT a.attisdropped) THEN
        RAISE EXCEPTION 'column % of table % does not exist', quote_literal(key), source
            USING ERRCODE = 'undefined_column', HINT = 'key is the name of a column; without it the primary key names the documents.';
    END IF;
    IF EXISTS (SELECT FROM pg_attribute a WHERE a.attrelid = source AND a.attname = key AND a.attgenerated = 'v') THEN
        RAISE EXCEPTION 'column % of table % cannot name the documents', quote_literal(key), source
            USING ERRCODE = 'feature_not_supported', DETAIL = 'It is computed when it is read: no trigger sees its value.',
                  HINT = 'Make it a stored column, or name the documents by one of those that it is computed of.';
    END IF;
END $$;
COMMENT ON FUNCTION ingest.refuse_source(regclass, text, text, oid) IS 'Raises an error unless the role may have the table watched for the pipeline';
REVOKE ALL ON FUNCTION ingest.refuse_source(regclass, text, text, oid) FROM PUBLIC;

CREATE FUNCTION ingest.add_watch(source regclass, pipeline_id int, content text, metadata text, key text, columns text[]) RETURNS int
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w ingest.watch;
BEGIN
    IF source IS NULL THEN
        RAISE EXCEPTION 'watch() needs a table' USING ERRCODE = 'null_value_not_allowed';
    END IF;
    BEGIN
        EXECUTE format('LOCK TABLE %s IN SHARE ROW EXCLUSIVE MODE', source);
    EXCEPTION WHEN lock_not_available THEN
        RAISE EXCEPTION 'table % is in use', source
            USING ERRCODE = 'lock_not_available',
                  DETAIL = 'Adding its triggers waits for the transactions that write to it, and holds up new ones meanwhile.',
                  HINT = 'Try again when none is open for long, or raise lock_timeout.';
    END;
    LOCK TABLE ingest.watch IN SHARE ROW EXCLUSIVE MODE;
    INSERT INTO ingest.watch AS v (pipeline_id, source, content, metadata, key, key_prefix, columns, key_columns, phase)
    VALUES (add_watch.pipeline_id, add_watch.source, add_watch.content, add_watch.metadata, add_watch.key,
            CASE WHEN EXISTS (SELECT FROM ingest.watch o WHERE o.pipeline_id = add_watch.pipeline_id AND o.source <> add_watch.source)
                 THEN add_watch.source || '/' ELSE '' END,
            add_watch.columns, ingest.primary_key(add_watch.source), 'scan')
    ON CONFLICT ON CONSTRAINT watch_pipeline_id_source_key DO UPDATE
        SET content = EXCLUDED.content, metadata = EXCLUDED.metadata, key = EXCLUDED.key, columns = EXCLUDED.columns,
            phase = 'sweep', position = NULL, definition = v.definition + 1,
            refresh = v.refresh OR (v.content, v.metadata, v.key) IS DISTINCT FROM (EXCLUDED.content, EXCLUDED.metadata, EXCLUDED.key)
    RETURNING v.* INTO w;
    BEGIN
        PERFORM ingest.attach_source(w.watch_id);
    EXCEPTION WHEN object_in_use THEN
        RAISE EXCEPTION '%', SQLERRM
            USING ERRCODE = 'object_in_use',
                  DETAIL = 'A constraint or trigger that this transaction has deferred is still to be looked at.',
                  HINT = 'Call watch() in a transaction of its own, or SET CONSTRAINTS ALL IMMEDIATE first.';
    END;
    -- What was in the way may be put right by this, for a rebuild, too.
    UPDATE ingest.pipeline p SET blocked_error = NULL, blocked_until = NULL, blocked_times = 0
    WHERE w.pipeline_id IN (p.pipeline_id, p.successor_of) AND p.blocked_error IS NOT NULL;
    PERFORM ingest.wake_to_review();
    RETURN w.watch_id;
END $$;
COMMENT ON FUNCTION ingest.add_watch(regclass, int, text, text, text, text[]) IS 'What watch() writes; returns the watch''s number';
REVOKE ALL ON FUNCTION ingest.add_watch(regclass, int, text, text, text, text[]) FROM PUBLIC;

CREATE FUNCTION ingest.remove_watch(source oid, pipeline_id int) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    found_id int := (SELECT w.watch_id FROM ingest.watch w
                     WHERE w.source = remove_watch.source AND w.pipeline_id = remove_watch.pipeline_id);
BEGIN
    IF found_id IS NULL THEN
        RETURN false;
    END IF;
    PERFORM ingest.require_read_committed('unwatch()', 'does not see all documents that it would remove');
    PERFORM ingest.detach_source(found_id);
    -- The worker looks at it before it adds documents.
    DELETE FROM ingest.watch w WHERE w.watch_id = found_id;
    PERFORM ingest.forget_all_of_source(found_id);
    PERFORM ingest.wake_to_review();
    RETURN true;
END $$;
COMMENT ON FUNCTION ingest.remove_watch(oid, int) IS 'What unwatch() does; false when the pipeline does not watch the table';
REVOKE ALL ON FUNCTION ingest.remove_watch(oid, int) FROM PUBLIC;

-- Statements on a watched table that the worker runs as the pipeline's owner: of one row ($1 its source_key, $2 the most
-- bytes) its content and metadata; of many ($1 source_keys) those that are gone; the next rows ($1 the last source_key, $2 how many).
CREATE FUNCTION ingest.source_statements(watch_id int)
RETURNS TABLE (pipeline_id int, owner oid, source text, reading text, missing text, first_rows text, next_rows text)
LANGUAGE plpgsql STABLE ROWS 1 SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    w ingest.watch;
    keys text[];
    named text;
    equal text;
    columns text;
    -- A column that names the documents and is not there, or not for the owner, is no less missing than one that is read.
    named_by text := '';
    listed text;
    later text;
    tail text;
BEGIN
    SELECT v.* INTO w FROM ingest.watch v WHERE v.watch_id = source_statements.watch_id;
    IF NOT FOUND THEN
        RETURN;
    END IF;
    SELECT p.pipeline_id, p.owner::oid INTO pipeline_id, owner FROM ingest.pipeline p WHERE p.pipeline_id = w.pipeline_id;
    -- FROM names the table without an alias, as an expression may.
    SELECT format('%s%s', CASE WHEN c.relkind = 'r' THEN 'ONLY ' END, w.source), format('%I', c.relname)
    INTO source, named FROM pg_class c WHERE c.oid = w.source;
    keys := ingest.primary_key(w.source);
    IF source IS NOT NULL AND keys IS NOT NULL THEN
        SELECT string_agg(format('%s.%I = %s', named, k.name, k.value), ' AND ' ORDER BY k.place),
               string_agg(format('%s.%I', named, k.name), ', ' ORDER BY k.place), string_agg(k.value, ', ' ORDER BY k.place)
        INTO equal, listed, later
        FROM (SELECT c.name, c.place,
                     format('(%s)::%s', CASE cardinality(keys) WHEN 1 THEN '{key}' ELSE format('{key}::jsonb ->> %s', c.place - 1) END,
                            format_type(ingest.base_type(a.atttypid), -1)) AS value
              FROM unnest(keys) WITH ORDINALITY AS c(name, place)
              JOIN pg_attribute a ON a.attrelid = w.source AND a.attname = c.name) AS k;
        IF w.key IS NOT NULL THEN
            named_by := format(', %s.%I AS named_by', named, w.key);
        END IF;
        columns := ingest.row_columns(w, w.source, keys, named) || named_by;
        reading := format(
            E'SELECT octet_length(r.content) AS bytes, CASE WHEN octet_length(r.content) <= $2 THEN r.content END AS content,\n'
            '       coalesce(r.metadata, ''{}'') AS metadata\n'
            'FROM (SELECT (\n%s\n)::text AS content, ((\n%s\n)::jsonb)::text AS metadata%s FROM %s WHERE %s OFFSET 0) AS r',
            w.content, coalesce(w.metadata, 'NULL'), named_by, source, replace(equal, '{key}', '$1'));
        missing := format(
            'SELECT u.source_key FROM unnest($1::text[]) AS u(source_key)'
            ' LEFT JOIN LATERAL (SELECT true AS there FROM %s WHERE %s AND %s = u.source_key LIMIT 1) AS r ON true WHERE r.there IS NULL',
            source, replace(equal, '{key}', 'u.source_key'), ingest.row_key(keys, named));
        tail := format(' ORDER BY %s LIMIT $2', listed);
        first_rows := format('SELECT %s FROM %s WHERE $1::text IS NULL', columns, source) || tail;
        next_rows := format('SELECT %s FROM %s WHERE (%s) > (%s)', columns, source, listed, replace(later, '{key}', '$1')) || tail;
    END IF;
    RETURN NEXT;
END $$;
COMMENT ON FUNCTION ingest.source_statements(int) IS 'The SQL by which the worker reads a watched table; source is null when the table was dropped, the rest without a primary key';
REVOKE ALL ON FUNCTION ingest.source_statements(int) FROM PUBLIC;

-- For estimate(): a row that fails costs nothing.
CREATE FUNCTION ingest.try_reading(statement text, source_key text, most int) RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    content text;
BEGIN
    EXECUTE format('SELECT x.content FROM (%s) AS x', statement) INTO content USING source_key, most;
    RETURN content;
EXCEPTION WHEN OTHERS THEN
    RETURN NULL;
END $$;
COMMENT ON FUNCTION ingest.try_reading(text, text, int) IS 'A row''s content by its pipeline''s reading statement, run with your own rights; null when it fails';

-- Documents of the old key may have the same texts as rows of the new one: all are looked at again.
CREATE FUNCTION ingest.has_new_key(watch_id int) RETURNS boolean
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    UPDATE ingest.watch w SET key_columns = ingest.primary_key(w.source), phase = 'sweep', position = NULL, refresh = true
    WHERE w.watch_id = has_new_key.watch_id AND ingest.primary_key(w.source) <> w.key_columns;
    RETURN FOUND;
END $$;
COMMENT ON FUNCTION ingest.has_new_key(int) IS 'Whether a watched table has another primary key since the worker began to look through it; it begins anew then';
REVOKE ALL ON FUNCTION ingest.has_new_key(int) FROM PUBLIC;

-- Rows of a watched table that were read as the pipeline's owner become documents.
CREATE FUNCTION ingest.stage_rows(watch_id int, source_keys text[], keys text[], bytes int[], is_last boolean) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    w ingest.watch;
    rows text := 'SELECT * FROM unnest($1, $2, $4) AS u(source_key, key, bytes)';
    version bigint := nextval('ingest.source_version');
    statements text[];
    statement text;
    left_over boolean;
BEGIN
    -- Who unwatches the table meanwhile waits for this, and removes what it stages.
    SELECT * INTO w FROM ingest.watch v WHERE v.watch_id = stage_rows.watch_id AND v.phase = 'scan' FOR NO KEY UPDATE;
    IF NOT FOUND OR ingest.has_new_key(stage_rows.watch_id) THEN
        RETURN;
    END IF;
    statements := ARRAY[ingest.staging_sql(w, rows)];
    IF w.refresh THEN
        statements := array_remove(statements || ingest.renaming_sql(w, rows) || ingest.touching_sql(w, rows), NULL);
    END IF;
    -- More than once only where a document has another name now, or came or went in between.
    FOR attempt IN 1..20 LOOP
        FOREACH statement IN ARRAY statements LOOP
            EXECUTE statement USING source_keys, keys, version, bytes;
        END LOOP;
        left_over := EXISTS (SELECT FROM unnest(source_keys) AS u(source_key)
                             WHERE NOT EXISTS (SELECT FROM ingest.documents d WHERE d.watch_id = w.watch_id AND d.source_key = u.source_key));
        EXIT WHEN NOT left_over;
    END LOOP;
    IF left_over THEN
        RAISE EXCEPTION 'rows of % are being written', w.source USING ERRCODE = 'lock_not_available';
    END IF;
    UPDATE ingest.watch v
    SET position = CASE WHEN NOT is_last THEN source_keys[cardinality(source_keys)] END,
        phase = CASE WHEN is_last THEN 'done' ELSE 'scan' END, refresh = v.refresh AND NOT is_last
    WHERE v.watch_id = w.watch_id;
END $$;
COMMENT ON FUNCTION ingest.stage_rows(int, text[], text[], int[], boolean) IS 'Adds documents for rows of a watched table, and notes how far the scan is';
REVOKE ALL ON FUNCTION ingest.stage_rows(int, text[], text[], int[], boolean) FROM PUBLIC;

-- They are locked first: whoever puts a row back meanwhile is waited for, or waits.
CREATE FUNCTION ingest.next_to_sweep(watch_id int, most int) RETURNS SETOF text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp SET enable_seqscan = off AS $$
DECLARE
    after text := (SELECT w.position FROM ingest.watch w WHERE w.watch_id = next_to_sweep.watch_id);
BEGIN
    IF after IS NULL THEN
        RETURN QUERY SELECT d.source_key FROM ingest.documents d WHERE d.watch_id = next_to_sweep.watch_id
                     ORDER BY d.source_key LIMIT most FOR UPDATE;
    ELSE
        RETURN QUERY SELECT d.source_key FROM ingest.documents d WHERE d.watch_id = next_to_sweep.watch_id AND d.source_key > after
                     ORDER BY d.source_key LIMIT most FOR UPDATE;
    END IF;
END $$;
COMMENT ON FUNCTION ingest.next_to_sweep(int, int) IS 'The source_keys of the next documents of a watched table whose rows are to be looked for';
REVOKE ALL ON FUNCTION ingest.next_to_sweep(int, int) FROM PUBLIC;

CREATE FUNCTION ingest.sweep(watch_id int, gone text[], last text) RETURNS void
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    PERFORM FROM ingest.watch w WHERE w.watch_id = sweep.watch_id AND w.phase = 'sweep' FOR NO KEY UPDATE;
    IF NOT FOUND OR ingest.has_new_key(sweep.watch_id) THEN
        RETURN;
    END IF;
    DELETE FROM ingest.documents d WHERE d.watch_id = sweep.watch_id AND d.source_key = ANY (gone);
    UPDATE ingest.watch w
    SET position = last, phase = CASE WHEN last IS NULL THEN 'scan' ELSE 'sweep' END
    WHERE w.watch_id = sweep.watch_id;
END $$;
COMMENT ON FUNCTION ingest.sweep(int, text[], text) IS 'Removes documents whose rows are gone, and notes how far the sweep is; the scan follows the last';
REVOKE ALL ON FUNCTION ingest.sweep(int, text[], text) FROM PUBLIC;

CREATE FUNCTION ingest.pipeline_watches() RETURNS trigger
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp AS $$
BEGIN
    IF NEW.on_success = 'delete' AND EXISTS (SELECT FROM ingest.watch w WHERE w.pipeline_id = NEW.pipeline_id) THEN
        RAISE EXCEPTION 'pipeline % watches tables, so it cannot delete its documents', quote_literal(NEW.name)
            USING ERRCODE = 'object_not_in_prerequisite_state',
                  DETAIL = 'The documents of a watched table are what tells its rows that are embedded from those that are not; they hold no text.',
                  HINT = 'Leave on_success as it is, ''keep''.';
    END IF;
    IF EXISTS (SELECT FROM ingest.watch w WHERE w.source = NEW.target) THEN
        RAISE EXCEPTION 'table % cannot be the target of pipeline %: it is watched', NEW.target, quote_literal(NEW.name)
            USING ERRCODE = 'object_in_use', HINT = 'Give another target, or SELECT ingest.unwatch() of that table.';
    END IF;
    RETURN NEW;
END $$;
COMMENT ON FUNCTION ingest.pipeline_watches() IS 'Refuses what a pipeline with watched tables cannot be';
CREATE TRIGGER pipeline_watches BEFORE INSERT OR UPDATE OF on_success, target ON ingest.pipeline
    FOR EACH ROW EXECUTE FUNCTION ingest.pipeline_watches();

REVOKE ALL ON FUNCTION ingest.source_changed(), ingest.pipeline_watches() FROM PUBLIC;
