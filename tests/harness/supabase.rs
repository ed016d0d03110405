//! A cluster with the roles, schemas and default privileges of Supabase's Postgres images: `postgres` is no superuser,
//! `supabase_admin` is, pgvector lies in schema `extensions`, and what is new in `public` is open to the API's roles.

use std::path::Path;

use crate::{Cluster, Database, quoted};

/// What the images' init scripts and migrations leave behind, as far as it matters here
/// (github.com/supabase/postgres, migrations/db).
const ROLES_AND_SCHEMAS: &str = "
    CREATE ROLE postgres LOGIN CREATEDB CREATEROLE REPLICATION BYPASSRLS;
    GRANT ALL ON DATABASE postgres TO postgres;
    CREATE SCHEMA extensions;
    CREATE EXTENSION vector WITH SCHEMA extensions;
    CREATE ROLE anon NOLOGIN;
    CREATE ROLE authenticated NOLOGIN;
    CREATE ROLE service_role NOLOGIN BYPASSRLS;
    CREATE ROLE authenticator LOGIN NOINHERIT;
    GRANT anon, authenticated, service_role TO authenticator;
    GRANT anon, authenticated, service_role, pg_monitor, pg_read_all_data, pg_signal_backend TO postgres;
    GRANT CREATE, USAGE ON SCHEMA public TO postgres;
    GRANT USAGE ON SCHEMA public TO anon, authenticated, service_role;
    GRANT ALL ON SCHEMA extensions TO postgres;
    GRANT USAGE ON SCHEMA extensions TO anon, authenticated, service_role;
    ALTER ROLE supabase_admin SET search_path TO \"$user\", public, auth, extensions;
    ALTER ROLE postgres SET search_path TO \"$user\", public, extensions;
    ALTER ROLE anon SET statement_timeout = '3s';
    ALTER ROLE authenticated SET statement_timeout = '8s'";

/// Both superuser and owner give everything new in `public` to the API's roles.
const DEFAULT_PRIVILEGES: &str = "
    ALTER DEFAULT PRIVILEGES FOR ROLE {role} IN SCHEMA public GRANT ALL ON TABLES TO postgres, anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE {role} IN SCHEMA public GRANT ALL ON FUNCTIONS TO postgres, anon, authenticated, service_role;
    ALTER DEFAULT PRIVILEGES FOR ROLE {role} IN SCHEMA public GRANT ALL ON SEQUENCES TO postgres, anon, authenticated, service_role";

/// Vault as a reader sees it, without its encryption.
const VAULT: &str = "
    CREATE SCHEMA vault;
    CREATE TABLE vault.secrets (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), name text UNIQUE, description text NOT NULL DEFAULT '',
        secret text NOT NULL, key_id uuid, nonce bytea, created_at timestamptz NOT NULL DEFAULT now(),
        updated_at timestamptz NOT NULL DEFAULT now());
    CREATE VIEW vault.decrypted_secrets AS
        SELECT id, name, description, secret, secret AS decrypted_secret, key_id, nonce, created_at, updated_at FROM vault.secrets;
    CREATE FUNCTION vault.create_secret(new_secret text, new_name text = NULL, new_description text = '') RETURNS uuid
        LANGUAGE sql SECURITY DEFINER SET search_path = '' AS
        'INSERT INTO vault.secrets (secret, name, description) VALUES ($1, $2, $3) RETURNING id';
    REVOKE ALL ON FUNCTION vault.create_secret FROM PUBLIC;
    GRANT USAGE ON SCHEMA vault TO postgres, service_role;
    GRANT SELECT, DELETE ON vault.secrets, vault.decrypted_secrets TO postgres, service_role;
    GRANT EXECUTE ON FUNCTION vault.create_secret TO postgres, service_role";

/// Starts one, with these settings.
pub fn start(settings: &[(&str, &str)]) -> Cluster {
    let cluster = Cluster::start_as("supabase_admin", settings);
    let database = Database::present_in(&cluster, "postgres");
    database.run(ROLES_AND_SCHEMAS);
    for role in ["supabase_admin", "postgres"] {
        database.run(&DEFAULT_PRIVILEGES.replace("{role}", role));
    }
    database.run(VAULT);
    drop(database);
    cluster
}

/// `CREATE EXTENSION pg_ingest` by the role `postgres`, as supautils does it for an extension in its list: as the superuser,
/// with the script after it (github.com/supabase/supautils, extension_custom_scripts.c).
pub fn create_extension(database: &Database) {
    database.run("CREATE EXTENSION pg_ingest");
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../supabase/after-create.sql");
    let script = std::fs::read_to_string(script).expect("supabase/after-create.sql");
    database.run(&format!(
        "DO $_$ BEGIN
             EXECUTE replace(replace(replace(replace({}, '@extname@', '''pg_ingest'''), '@extschema@', '''ingest'''),
                                     '@extversion@', '''null'''), '@extcascade@', 'false');
         END $_$",
        quoted(&script)
    ));
}
