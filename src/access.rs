//! Who may send what where: the hosts that a pipeline may speak to and the keys that it may show them.
//!
//! A superuser may do anything. Everybody else's documents go to a provider's own public host or to one in
//! `pg_ingest.allowed_hosts`, and their key is one that they could read themselves, or the administrator has allowed the
//! host that it goes to.

use embedder::key::{KeyReference, read_env, read_file};
use embedder::remote::Endpoint;
use embedder::{AllowedHosts, EmbedError, ErrorClass, Secret};
use pgrx::prelude::*;

use crate::api::definition::owned_pipelines;
use crate::errors::OrRaise;
use crate::installed::{Installed, installed};
use crate::owner::ActingAs;
use crate::{reading, settings};

/// What stands before an error about a pipeline's host or key. The view `ingest.progress_of_all` knows it, too: what follows is
/// for the owner alone to read.
const UNUSABLE: &str = "the host or key of the pipeline cannot be used";

/// An error about a pipeline's host or key, to be kept where others than its owner may come by it.
pub fn marked(error: EmbedError) -> EmbedError {
    EmbedError {
        message: format!("{UNUSABLE}: {}", error.message),
        ..error
    }
}

/// Whether an error was [`marked`].
pub fn is_for_the_owner(message: &str) -> bool {
    message.starts_with(UNUSABLE)
}

/// What others than the owner are told instead.
pub fn told_to_others() -> String {
    format!("{UNUSABLE}: its owner can see why")
}

/// Why something is not allowed.
pub struct Denied {
    /// What is not.
    pub message: String,
    /// What to do.
    pub hint: String,
}

/// Whether the owner of a pipeline may send documents to this endpoint and show it this key. `trusted` says that a
/// superuser has set the endpoint.
pub fn check(
    endpoint: &Endpoint,
    key: Option<&KeyReference>,
    owner: pg_sys::Oid,
    trusted: bool,
) -> Result<(), Denied> {
    // SAFETY: a catalog look-up inside a transaction.
    if unsafe { pg_sys::superuser_arg(owner) } {
        return Ok(());
    }
    let list = settings::allowed_hosts();
    let listed = list
        .parse::<AllowedHosts>()
        .map_err(|error| Denied {
            message: format!("the setting pg_ingest.allowed_hosts cannot be read: {error}"),
            hint:
                "It is a comma-separated list of hosts, such as api.voyageai.com, localhost:11434."
                    .into(),
        })?
        .allows(endpoint);
    let host = AllowedHosts::entry_for(endpoint);
    // The command replaces the whole setting.
    let longer = match list.trim() {
        "" => host.clone(),
        present => format!("{present}, {host}"),
    };
    if !(listed || trusted || endpoint.is_default_host()) {
        return Err(Denied {
            message: format!("host {host} is not in pg_ingest.allowed_hosts"),
            hint: format!(
                "Ask an administrator: ALTER SYSTEM SET pg_ingest.allowed_hosts = '{longer}'; SELECT pg_reload_conf();"
            ),
        });
    }
    let readable = match key {
        None | Some(KeyReference::Vault(_)) => true,
        Some(KeyReference::Env(_)) => false,
        Some(KeyReference::File(_)) => may_read_files(owner),
    };
    if readable || listed {
        return Ok(());
    }
    let key = key.map(ToString::to_string).unwrap_or_default();
    Err(Denied {
        message: format!("the owner of the pipeline may not use the key {key} with host {host}"),
        hint: format!(
            "A key of the server's environment is for superusers, one in a file for members of pg_read_server_files, unless \
             {host} is in pg_ingest.allowed_hosts; vault:NAME works for who can read the secret."
        ),
    })
}

/// Whether row security does not apply to the current user: it sees the documents of every pipeline.
pub fn sees_everything() -> bool {
    // SAFETY: catalog look-ups inside a transaction. A superuser has the privilege.
    unsafe { pg_sys::has_bypassrls_privilege(pg_sys::GetUserId()) }
}

/// The pipelines that the current user owns or was granted, all when row security does not apply to it.
pub fn visible_pipelines() -> Vec<i32> {
    // The SQL of 0.1.0 grants none, and asks all the same.
    if let Installed::Other(_) = installed() {
        return owned_pipelines();
    }
    reading::one(
        "SELECT coalesce(pg_catalog.array_agg(pipeline_id), '{}') FROM ingest.visible_pipelines",
        &[],
    )
    .or_raise()
    .unwrap_or_default()
}

/// The name of a role, for messages.
pub fn role_name(role: pg_sys::Oid) -> String {
    reading::one(
        "SELECT pg_catalog.quote_ident(pg_catalog.pg_get_userbyid($1))",
        &[role.into()],
    )
    .or_raise()
    .unwrap_or_default()
}

fn may_read_files(role: pg_sys::Oid) -> bool {
    // SAFETY: a catalog look-up inside a transaction.
    unsafe { pg_sys::has_privs_of_role(role, pg_sys::ROLE_PG_READ_SERVER_FILES.into()) }
}

/// The key behind a reference, read now. A secret in Vault is read as the pipeline's owner. Inside a transaction; raises
/// when the look-up in Vault does.
///
/// # Errors
/// The reference leads nowhere. The error blocks the pipeline and holds no key.
pub fn resolve(reference: &KeyReference, owner: pg_sys::Oid) -> Result<Secret, EmbedError> {
    match reference {
        KeyReference::Vault(name) => {
            let text = from_vault(name, owner)?;
            Secret::new(&text)
                .map_err(|error| refused(&format!("secret {name:?} of Vault is no key: {error}")))
        }
        KeyReference::Env(name) => read_env(name).map_err(|error| {
            refused(&error.to_string()).with_hint(
                "Set the variable where the server is started and restart it, or keep the key in a file (file:/PATH) or in Vault.",
            )
        }),
        KeyReference::File(path) => read_file(path).map_err(|error| {
            refused(&error.to_string())
                .with_hint("The file must be readable for the user that the server runs as.")
        }),
    }
}

fn from_vault(name: &str, owner: pg_sys::Oid) -> Result<String, EmbedError> {
    const VIEW: &str = "vault.decrypted_secrets";
    let there = reading::one::<bool>(
        "SELECT pg_catalog.to_regclass('vault.decrypted_secrets') IS NOT NULL",
        &[],
    );
    if there != Ok(Some(true)) {
        return Err(refused(&format!(
            "the key vault:{name} cannot be read: there is no view {VIEW} in this database"
        ))
        .with_hint("Install Supabase Vault (CREATE EXTENSION supabase_vault), or use env:NAME or file:PATH."));
    }
    // SAFETY: a catalog look-up inside a transaction.
    let readable = reading::one::<bool>(
        "SELECT pg_catalog.has_table_privilege($1, 'vault.decrypted_secrets', 'SELECT')
            AND pg_catalog.has_schema_privilege($1, 'vault', 'USAGE')",
        &[owner.into()],
    );
    if readable != Ok(Some(true)) {
        return Err(refused(&format!(
            "the key vault:{name} cannot be read: the owner of the pipeline may not read {VIEW}"
        ))
        .with_hint("GRANT USAGE ON SCHEMA vault, and GRANT SELECT ON vault.decrypted_secrets, to the pipeline's owner."));
    }
    let _acting = ActingAs::new(owner);
    let found = Spi::connect(|client| {
        let rows = client.select(
            "SELECT decrypted_secret::text FROM vault.decrypted_secrets WHERE name OPERATOR(pg_catalog.=) $1",
            Some(2),
            &[name.into()],
        )?;
        let mut secrets = Vec::new();
        for row in rows {
            secrets.extend(row.get::<String>(1)?);
        }
        Ok::<_, pgrx::spi::Error>(secrets)
    });
    match found.unwrap_or_default().as_slice() {
        [secret] => Ok(secret.clone()),
        [] => Err(
            refused(&format!("there is no secret {name:?} in Vault")).with_hint(format!(
                "SELECT vault.create_secret('the key', '{}');",
                name.replace('\'', "''")
            )),
        ),
        _ => Err(refused(&format!(
            "Vault has several secrets named {name:?}"
        ))),
    }
}

fn refused(message: &str) -> EmbedError {
    EmbedError::new(ErrorClass::Auth, message)
}
