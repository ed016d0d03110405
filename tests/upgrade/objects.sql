-- What makes up the extension in this database, a row for each property of an object: (object, property, value). Numbers
-- that differ from database to database (oids, owners) are not in it.
WITH extension AS (
    SELECT * FROM pg_extension WHERE extname = 'pg_ingest'
), member AS (
    SELECT d.classid, d.objid
    FROM pg_depend d JOIN extension e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
    WHERE d.deptype = 'e'
), relation AS (
    SELECT c.*, format('%s %s', CASE c.relkind WHEN 'v' THEN 'view' WHEN 'S' THEN 'sequence' WHEN 'i' THEN 'index' ELSE 'table' END,
                       c.oid::regclass) AS object
    FROM pg_class c JOIN member m ON m.classid = 'pg_class'::regclass AND m.objid = c.oid
), function AS (
    SELECT p.*, format('function %s', p.oid::regprocedure) AS object
    FROM pg_proc p JOIN member m ON m.classid = 'pg_proc'::regclass AND m.objid = p.oid
), commented AS (
    SELECT m.classid, m.objid FROM member m
    UNION ALL
    SELECT 'pg_trigger'::regclass, t.oid FROM pg_trigger t JOIN relation r ON r.oid = t.tgrelid
    UNION ALL
    SELECT 'pg_constraint'::regclass, c.oid FROM pg_constraint c JOIN relation r ON r.oid = c.conrelid
    UNION ALL
    SELECT 'pg_policy'::regclass, p.oid FROM pg_policy p JOIN relation r ON r.oid = p.polrelid
    UNION ALL
    SELECT 'pg_class'::regclass, i.indexrelid FROM pg_index i JOIN relation r ON r.oid = i.indrelid
)
SELECT pg_describe_object(m.classid, m.objid, 0) AS object, 'exists' AS property, 'yes' AS value FROM member m

UNION ALL
SELECT r.object, 'kind, storage, row security, rights',
       concat_ws(' ', r.relkind, r.relpersistence, r.reloptions, r.relrowsecurity, r.relforcerowsecurity, r.relreplident, r.relacl)
FROM relation r
UNION ALL
SELECT r.object, 'columns in order', string_agg(a.attname, ', ' ORDER BY a.attnum)
FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
GROUP BY r.object
UNION ALL
SELECT r.object, 'column ' || a.attname,
       concat_ws(' ', format_type(a.atttypid, a.atttypmod), CASE WHEN a.attnotnull THEN 'NOT NULL' END,
                 'DEFAULT ' || pg_get_expr(d.adbin, d.adrelid), 'IDENTITY ' || nullif(a.attidentity::text, ''),
                 'GENERATED ' || nullif(a.attgenerated::text, ''), a.attcollation::regcollation, a.attstorage, a.attacl,
                 -- The server's own mark of when the column came, in newer minor releases.
                 (SELECT array_agg(o ORDER BY o) FROM unnest(a.attoptions) AS o WHERE o NOT LIKE 'pg\_attver=%'))
FROM relation r JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
UNION ALL
SELECT r.object, 'definition', pg_get_viewdef(r.oid) FROM relation r WHERE r.relkind IN ('v', 'm')
UNION ALL
SELECT r.object, 'sequence', concat_ws(' ', s.seqtypid::regtype, s.seqstart, s.seqincrement, s.seqmin, s.seqmax, s.seqcache, s.seqcycle)
FROM relation r JOIN pg_sequence s ON s.seqrelid = r.oid
UNION ALL
SELECT r.object, 'constraint ' || c.conname, concat_ws(' ', pg_get_constraintdef(c.oid), CASE WHEN NOT c.convalidated THEN 'NOT VALID' END)
FROM relation r JOIN pg_constraint c ON c.conrelid = r.oid
UNION ALL
SELECT r.object, 'index ' || i.indexrelid::regclass, pg_get_indexdef(i.indexrelid) FROM relation r JOIN pg_index i ON i.indrelid = r.oid
UNION ALL
SELECT r.object, 'trigger ' || t.tgname, concat_ws(' ', pg_get_triggerdef(t.oid), t.tgenabled)
FROM relation r JOIN pg_trigger t ON t.tgrelid = r.oid WHERE NOT t.tgisinternal
UNION ALL
SELECT r.object, 'policy ' || p.polname,
       concat_ws(' ', p.polcmd, p.polpermissive, (SELECT string_agg(coalesce(nullif(u, 0)::regrole::text, 'public'), ', ') FROM unnest(p.polroles) AS u),
                 'USING ' || pg_get_expr(p.polqual, p.polrelid), 'WITH CHECK ' || pg_get_expr(p.polwithcheck, p.polrelid))
FROM relation r JOIN pg_policy p ON p.polrelid = r.oid
UNION ALL
SELECT r.object, 'rule ' || w.rulename, pg_get_ruledef(w.oid) FROM relation r JOIN pg_rewrite w ON w.ev_class = r.oid WHERE r.relkind = 'r'

UNION ALL
SELECT f.object, 'definition', pg_get_functiondef(f.oid) FROM function f WHERE f.prokind <> 'a'
UNION ALL
SELECT f.object, 'rights', coalesce(f.proacl::text, 'those of every function') FROM function f

UNION ALL
SELECT format('type %s', t.oid::regtype), 'definition',
       concat_ws(' ', t.typtype, t.typcategory, nullif(t.typbasetype, 0)::regtype, t.typnotnull, t.typdefault, t.typacl,
                 (SELECT string_agg(e.enumlabel, ', ' ORDER BY e.enumsortorder) FROM pg_enum e WHERE e.enumtypid = t.oid),
                 (SELECT string_agg(pg_get_constraintdef(c.oid), ', ' ORDER BY c.conname) FROM pg_constraint c WHERE c.contypid = t.oid))
FROM pg_type t JOIN member m ON m.classid = 'pg_type'::regclass AND m.objid = t.oid
UNION ALL
SELECT format('event trigger %s', t.evtname), 'definition', concat_ws(' ', t.evtevent, t.evtfoid::regprocedure, t.evtenabled, t.evttags)
FROM pg_event_trigger t JOIN member m ON m.classid = 'pg_event_trigger'::regclass AND m.objid = t.oid
UNION ALL
SELECT format('schema %s', n.nspname), 'rights', n.nspacl::text
FROM pg_namespace n JOIN extension e ON n.oid = e.extnamespace

UNION ALL
SELECT pg_describe_object(d.classoid, d.objoid, d.objsubid), 'comment', d.description
FROM commented c JOIN pg_description d ON d.classoid = c.classid AND d.objoid = c.objid
UNION ALL
SELECT pg_describe_object(p.classoid, p.objoid, p.objsubid), 'rights that pg_dump takes for the extension''s own', p.initprivs::text
FROM member m JOIN pg_init_privs p ON p.classoid = m.classid AND p.objoid = m.objid
UNION ALL
SELECT 'extension', 'version, schema', concat_ws(' ', e.extversion, e.extnamespace::regnamespace, e.extrelocatable) FROM extension e
UNION ALL
SELECT 'extension', 'needs', string_agg(pg_describe_object(d.refclassid, d.refobjid, 0), ', ' ORDER BY d.refobjid)
FROM extension e JOIN pg_depend d ON d.classid = 'pg_extension'::regclass AND d.objid = e.oid
UNION ALL
SELECT 'extension', 'pg_dump takes along ' || c.relation::oid::regclass, coalesce(nullif(c.condition, ''), 'all rows')
FROM extension e CROSS JOIN LATERAL unnest(e.extconfig, e.extcondition) AS c(relation, condition)
ORDER BY 1, 2, 3
