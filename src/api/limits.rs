//! `set_limit`, `drop_limit`, and what the view `ingest.limits` shows of shared memory.

use embedder::presets::{self, Preset};
use limiter::{Budget, wait_until_midnight};
use pgrx::datum::Interval;
use pgrx::prelude::*;

use crate::api::MAX_NAME;
use crate::budgets::{self, Seen};
use crate::errors::{OrRaise, UserError};
use crate::installed::{Installed, installed};
use crate::owner::ActingAs;
use crate::reading::{self, refuse_if_read_only};
use crate::{access, wake};

/// A limit's figures as SQL gives them.
struct Figures {
    rpm: Option<i64>,
    tpm: Option<i64>,
    rpd: Option<i64>,
    tpd: Option<i64>,
    utilization: f64,
}

impl Figures {
    fn check(&self) -> Result<(), UserError> {
        let figures = [
            ("rpm", self.rpm),
            ("tpm", self.tpm),
            ("rpd", self.rpd),
            ("tpd", self.tpd),
        ];
        for (name, figure) in figures {
            if let Some(figure @ ..=0) = figure {
                return Err(UserError::invalid(format!("{name} must be at least 1"))
                    .detail(format!("It is {figure}."))
                    .hint(
                        "Leave out a figure for which there is no limit; pause() stops a pipeline.",
                    ));
            }
        }
        if figures.iter().all(|(_, figure)| figure.is_none()) {
            return Err(
                UserError::invalid("a limit needs at least one of rpm, tpm, rpd and tpd").hint(
                    "For example SELECT ingest.set_limit('openai', rpm => 5000, tpm => 5000000);",
                ),
            );
        }
        if !(self.utilization > 0.0 && self.utilization <= 1.0) {
            return Err(
                UserError::invalid("utilization must be above 0 and at most 1")
                    .detail(format!("It is {}.", self.utilization))
                    .hint(
                        "It is the share of the limit to use: 0.8 leaves a fifth of it to others.",
                    ),
            );
        }
        Ok(())
    }

    fn budget(&self) -> Budget {
        let figure = |figure: Option<i64>| figure.map(i64::unsigned_abs);
        Budget {
            requests_per_minute: figure(self.rpm),
            tokens_per_minute: figure(self.tpm),
            requests_per_day: figure(self.rpd),
            tokens_per_day: figure(self.tpd),
            utilization: self.utilization,
        }
    }

    fn of_preset(preset: &Preset) -> Self {
        let figure = |figure: Option<u64>| figure.and_then(|n| i64::try_from(n).ok());
        Self {
            rpm: figure(preset.rpm),
            tpm: figure(preset.tpm),
            rpd: figure(preset.rpd),
            tpd: figure(preset.tpd),
            utilization: DEFAULT_UTILIZATION,
        }
    }

    /// Writes the definition, which is `owner`'s from now on.
    fn write(&self, name: &str, owner: pg_sys::Oid) {
        // SAFETY: a catalog look-up inside a transaction.
        let anybodys = unsafe { pg_sys::superuser() };
        let acting = ActingAs::extension_owner();
        // Somebody else may have made one of this name meanwhile.
        let written = Spi::get_one_with_args::<i64>(
            "WITH written AS (
                 INSERT INTO ingest.limit_definition AS l (name, owner, rpm, tpm, rpd, tpd, utilization) VALUES ($1, $2, $3, $4, $5, $6, $7)
                 ON CONFLICT (name) DO UPDATE
                     SET owner = EXCLUDED.owner, rpm = EXCLUDED.rpm, tpm = EXCLUDED.tpm, rpd = EXCLUDED.rpd, tpd = EXCLUDED.tpd,
                         utilization = EXCLUDED.utilization
                     WHERE $8 OR l.owner = EXCLUDED.owner
                 RETURNING 1)
             SELECT count(*) FROM written",
            &[
                name.into(),
                owner.into(),
                self.rpm.into(),
                self.tpm.into(),
                self.rpd.into(),
                self.tpd.into(),
                self.utilization.into(),
                anybodys.into(),
            ],
        )
        .or_raise();
        drop(acting);
        if written != Some(1) {
            not_owner(name).raise();
        }
    }
}

/// Limits of one database at most: half of what all databases share.
const MAX_LIMITS_OF_A_DATABASE: i64 = 64;
/// Limits of one role at most that is no superuser.
const MAX_LIMITS_OF_A_ROLE: i64 = 8;
/// The default of `utilization` in the SQL signature.
const DEFAULT_UTILIZATION: f64 = 0.8;

#[pg_extern(sql = false)]
fn set_limit(
    name: Option<&str>,
    rpm: Option<i64>,
    tpm: Option<i64>,
    rpd: Option<i64>,
    tpd: Option<i64>,
    utilization: Option<f64>,
) {
    refuse_if_read_only(c"ingest.set_limit()");
    let name = name.unwrap_or_default();
    check_name(name).or_raise();
    let figures = Figures {
        rpm,
        tpm,
        rpd,
        tpd,
        utilization: utilization.unwrap_or(DEFAULT_UTILIZATION),
    };
    figures.check().or_raise();
    let owner = require_ownership(name).or_raise();
    if owner.is_none() {
        refuse_too_many().or_raise();
    }
    refuse_name_of_preset(name, &figures).or_raise();
    let longest: Option<i32> = {
        let _acting = ActingAs::extension_owner();
        Spi::get_one_with_args(
            "SELECT max(chunk_tokens) FROM ingest.pipeline WHERE limits = $1",
            &[name.into()],
        )
        .or_raise()
    };
    if let Some(chunk) = longest {
        fits(name, &figures.budget(), chunk).or_raise();
    }
    // SAFETY: plain reads and a catalog look-up inside a transaction. What a superuser sets is nobody else's to change.
    let owner = unsafe {
        match owner {
            Some(owner) if !pg_sys::superuser() => owner,
            _ => pg_sys::GetUserId(),
        }
    };
    figures.write(name, owner);
    wake::at_commit();
}

/// Whoever finds the name of a preset in use expects its figures.
fn refuse_name_of_preset(name: &str, figures: &Figures) -> Result<(), UserError> {
    // SAFETY: a catalog look-up inside a transaction.
    if unsafe { pg_sys::superuser() } {
        return Ok(());
    }
    let Some(preset) = presets::preset(name) else {
        return Ok(());
    };
    let known = Figures::of_preset(preset);
    let same = (known.rpm, known.tpm, known.rpd, known.tpd)
        == (figures.rpm, figures.tpm, figures.rpd, figures.tpd);
    if same {
        return Ok(());
    }
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("limit {name:?} is a preset, to which only a superuser gives other figures"),
    )
    .hint("Give yours another name. SELECT * FROM ingest.limit_presets(); shows the preset's figures."))
}

/// Leaves room for the limits of other roles, and of other databases.
fn refuse_too_many() -> Result<(), UserError> {
    // SAFETY: a plain read, and a catalog look-up inside a transaction.
    let (user, superuser) = unsafe { (pg_sys::GetUserId(), pg_sys::superuser()) };
    let _acting = ActingAs::extension_owner();
    if !superuser {
        let own: Option<i64> = Spi::get_one_with_args(
            "SELECT count(*) FROM ingest.limit_definition WHERE owner::oid = $1",
            &[user.into()],
        )
        .or_raise();
        if own.unwrap_or(0) >= MAX_LIMITS_OF_A_ROLE {
            return Err(UserError::new(
                PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
                format!("a role that is no superuser has at most {MAX_LIMITS_OF_A_ROLE} limits"),
            )
            .hint("Drop one that is not used: SELECT ingest.drop_limit('…'); or ask a superuser, whose limits serve everybody."));
        }
    }
    let defined: Option<i64> =
        Spi::get_one("SELECT count(*) FROM ingest.limit_definition").or_raise();
    if defined.unwrap_or(0) < MAX_LIMITS_OF_A_DATABASE {
        return Ok(());
    }
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
        format!("a database has at most {MAX_LIMITS_OF_A_DATABASE} limits"),
    )
    .detail("They lie in shared memory, which has room for 128 of all databases together.")
    .hint("Drop one that is not used: SELECT ingest.drop_limit('…');"))
}

/// Whether a chunk of so many tokens can ever be sent under a budget: one that cannot would wait for ever.
fn fits(name: &str, budget: &Budget, chunk_tokens: i32) -> Result<(), UserError> {
    let targets = budget.targets();
    for (figure, most) in [
        ("tpm", targets.tokens_per_minute),
        ("tpd", targets.tokens_per_day),
    ] {
        if let Some(most) = most
            && most < chunk_tokens as u64
        {
            return Err(
                UserError::invalid(format!("limit {name:?} is smaller than one chunk"))
                    .detail(format!(
                        "{figure} × utilization is {most} tokens; a chunk may have {chunk_tokens}."
                    ))
                    .hint(
                        "Raise the limit, or give the pipeline smaller chunks with chunk_tokens.",
                    ),
            );
        }
    }
    Ok(())
}

/// Checks that a pipeline with chunks of so many tokens can use the limit of this name, and defines it if it is a preset
/// that nobody has defined yet.
pub fn use_limit(name: &str, chunk_tokens: i32) -> Result<(), UserError> {
    if let Some(budget) = defined(name) {
        require_trust(name)?;
        return fits(name, &budget, chunk_tokens);
    }
    let Some(preset) = presets::preset(name) else {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("limit {name:?} does not exist"),
        )
        .detail(format!("Limits here: {}.", known_limits()))
        .hint(format!(
            "Define it: SELECT ingest.set_limit('{}', rpm => …, tpm => …); or use a preset (SELECT * FROM ingest.limit_presets()).",
            name.replace('\'', "''")
        )));
    };
    refuse_too_many()?;
    let figures = Figures::of_preset(preset);
    fits(name, &figures.budget(), chunk_tokens)?;
    // SAFETY: a plain read.
    figures.write(name, unsafe { pg_sys::GetUserId() });
    notice!(
        "limit {name:?} is defined as of {} ({}), of which {:.0} % are used; change it with ingest.set_limit()",
        preset.date,
        preset.source,
        100.0 * DEFAULT_UTILIZATION
    );
    Ok(())
}

/// Refuses a limit that the current user has no reason to trust: its owner may change it at any time. That of a superuser
/// is everybody's.
fn require_trust(name: &str) -> Result<(), UserError> {
    let Some(owner) = owner_of(name) else {
        return Ok(());
    };
    // SAFETY: catalog look-ups inside a transaction.
    unsafe {
        let user = pg_sys::GetUserId();
        if pg_sys::superuser_arg(owner)
            || pg_sys::has_privs_of_role(user, owner) && !pg_sys::superuser_arg(user)
        {
            return Ok(());
        }
        if pg_sys::superuser_arg(user) {
            notice!(
                "limit {name:?} belongs to a role that is no superuser, which may change it; SELECT ingest.set_limit() makes it yours"
            );
            return Ok(());
        }
    }
    Err(UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("limit {name:?} belongs to another role"),
    )
    .hint("Define one of your own with ingest.set_limit(); a limit that a superuser has set serves everybody."))
}

/// The figures of a limit of this database.
pub fn defined(name: &str) -> Option<Budget> {
    let _acting = ActingAs::extension_owner();
    Spi::connect(|client| {
        let row = client
            .select(
                "SELECT rpm, tpm, rpd, tpd, utilization FROM ingest.limit_definition WHERE name = $1",
                Some(1),
                &[name.into()],
            )?
            .first();
        if row.is_empty() {
            return Ok::<_, pgrx::spi::Error>(None);
        }
        let figures = Figures {
            rpm: row.get(1)?,
            tpm: row.get(2)?,
            rpd: row.get(3)?,
            tpd: row.get(4)?,
            utilization: row.get(5)?.unwrap_or(DEFAULT_UTILIZATION),
        };
        Ok(Some(figures.budget()))
    })
    .or_raise()
}

/// The limits that the current user owns, uses or may use, for a message.
fn known_limits() -> String {
    let names: Option<String> = Spi::get_one(
        "SELECT string_agg(quote_literal(name), ', ' ORDER BY name) FROM ingest.visible_limits",
    )
    .or_raise();
    names.unwrap_or_else(|| "none".into())
}

/// The same as a list.
fn visible_limits() -> Vec<String> {
    // The SQL of 0.1.0 has no such view, and nothing is sent while it is there.
    if let Installed::Other(_) = installed() {
        return Vec::new();
    }
    reading::one(
        "SELECT coalesce(pg_catalog.array_agg(name), '{}') FROM ingest.visible_limits",
        &[],
    )
    .or_raise()
    .unwrap_or_default()
}

fn check_name(name: &str) -> Result<(), UserError> {
    if name.trim().is_empty() {
        return Err(UserError::invalid("a limit needs a name")
            .hint("For example SELECT ingest.set_limit('openai', rpm => 5000, tpm => 5000000);"));
    }
    if name.len() > MAX_NAME {
        return Err(UserError::new(
            PgSqlErrorCode::ERRCODE_NAME_TOO_LONG,
            "the name of a limit has at most 63 bytes",
        )
        .detail(format!("{name:?} has {}.", name.len())));
    }
    Ok(())
}

/// The owner of a limit, if there is one of this name.
fn owner_of(name: &str) -> Option<pg_sys::Oid> {
    let _acting = ActingAs::extension_owner();
    Spi::get_one_with_args(
        "SELECT (SELECT owner::oid FROM ingest.limit_definition WHERE name = $1)",
        &[name.into()],
    )
    .or_raise()
}

/// The owner of a limit, if there is one of this name; an error when it is somebody else.
fn require_ownership(name: &str) -> Result<Option<pg_sys::Oid>, UserError> {
    let Some(owner) = owner_of(name) else {
        return Ok(None);
    };
    // SAFETY: catalog look-ups inside a transaction.
    if unsafe { pg_sys::has_privs_of_role(pg_sys::GetUserId(), owner) } {
        return Ok(Some(owner));
    }
    Err(not_owner(name))
}

fn not_owner(name: &str) -> UserError {
    UserError::new(
        PgSqlErrorCode::ERRCODE_INSUFFICIENT_PRIVILEGE,
        format!("must be owner of limit {name:?}"),
    )
    .hint("SELECT ingest.set_limit('…', …) makes one of another name.")
}

#[pg_extern(sql = false)]
fn drop_limit(name: &str) {
    refuse_if_read_only(c"ingest.drop_limit()");
    if require_ownership(name).or_raise().is_none() {
        UserError::new(
            PgSqlErrorCode::ERRCODE_UNDEFINED_OBJECT,
            format!("limit {name:?} does not exist"),
        )
        .detail(format!("Limits here: {}.", known_limits()))
        .hint("SELECT name FROM ingest.limits;")
        .raise();
    }
    let _acting = ActingAs::extension_owner();
    let users: Option<String> = Spi::get_one_with_args(
        "SELECT string_agg(DISTINCT quote_literal(p.name), ', ') FROM ingest.pipeline p WHERE p.limits = $1",
        &[name.into()],
    )
    .or_raise();
    if let Some(users) = users {
        UserError::new(
            PgSqlErrorCode::ERRCODE_DEPENDENT_OBJECTS_STILL_EXIST,
            format!("limit {name:?} is in use"),
        )
        .detail(format!("By pipelines {users}."))
        .hint("Give them another one first, or none: SELECT ingest.alter_pipeline('…', limits => '');")
        .raise();
    }
    Spi::run_with_args(
        "DELETE FROM ingest.limit_definition WHERE name = $1",
        &[name.into()],
    )
    .or_raise();
    wake::at_commit();
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn limit_presets() -> TableIterator<
    'static,
    (
        name!(name, String),
        name!(rpm, Option<i64>),
        name!(tpm, Option<i64>),
        name!(rpd, Option<i64>),
        name!(tpd, Option<i64>),
        name!(source, String),
        name!(as_of, String),
    ),
> {
    TableIterator::new(presets::presets().iter().map(|preset| {
        let figures = Figures::of_preset(preset);
        (
            preset.name.clone(),
            figures.rpm,
            figures.tpm,
            figures.rpd,
            figures.tpd,
            preset.source.clone(),
            preset.date.clone(),
        )
    }))
}

#[pg_extern(sql = false)]
#[allow(clippy::type_complexity)]
fn budget_states() -> TableIterator<
    'static,
    (
        name!(name, Option<String>),
        name!(pipeline_id, Option<i32>),
        name!(requests_last_minute, i64),
        name!(tokens_last_minute, i64),
        name!(requests_today, i64),
        name!(tokens_today, i64),
        name!(rate_limited, i64),
        name!(cooling_down, Option<Interval>),
        name!(target_rpm, Option<i64>),
        name!(target_tpm, Option<i64>),
        name!(target_rpd, Option<i64>),
        name!(target_tpd, Option<i64>),
        name!(stricter_elsewhere, bool),
    ),
> {
    // SAFETY: a plain global, set when the backend connected.
    let database = unsafe { pg_sys::MyDatabaseId };
    let number = |n: u64| i64::try_from(n).unwrap_or(i64::MAX);
    let mut visible = budgets::seen_from(database);
    if !access::sees_everything() {
        let pipelines = access::visible_pipelines();
        let names = visible_limits();
        visible.retain(|seen| match &seen.name {
            Some(name) => names.contains(name),
            None => seen.pipeline.is_some_and(|id| pipelines.contains(&id)),
        });
    }
    TableIterator::new(visible.into_iter().map(move |seen| {
        let cooling_down = cooling_down(&seen);
        let now = seen.now;
        (
            seen.name,
            seen.pipeline,
            number(now.requests_last_minute),
            number(now.tokens_last_minute),
            number(now.requests_today),
            number(now.tokens_today),
            number(now.rate_limited),
            cooling_down,
            now.targets.requests_per_minute.map(number),
            now.targets.tokens_per_minute.map(number),
            now.targets.requests_per_day.map(number),
            now.targets.tokens_per_day.map(number),
            seen.stricter_elsewhere,
        )
    }))
}

/// How long nothing will be sent: the provider asked for it, or the day's budget is used up.
fn cooling_down(seen: &Seen) -> Option<Interval> {
    let used_up = |used: u64, most: Option<u64>| most.is_some_and(|most| used >= most);
    let now = &seen.now;
    let day = (now.day_is_spent
        || used_up(now.requests_today, now.targets.requests_per_day)
        || used_up(now.tokens_today, now.targets.tokens_per_day))
    .then(|| wait_until_midnight(limiter::Now::read().unix));
    let longest = now.cooling_down_for.into_iter().chain(day).max()?;
    let microseconds = i64::try_from(longest.as_micros()).unwrap_or(i64::MAX);
    Interval::new(0, 0, microseconds).ok()
}
