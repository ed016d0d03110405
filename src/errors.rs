//! The one place where a failure becomes a Postgres error.

use pgrx::pg_sys::panic::ErrorReport;
use pgrx::prelude::*;

/// What to tell the user: the SQLSTATE, what happened, the particulars, what to do.
pub struct UserError {
    code: PgSqlErrorCode,
    message: String,
    detail: Option<String>,
    hint: Option<String>,
}

impl UserError {
    /// An error with this SQLSTATE and message.
    pub fn new(code: PgSqlErrorCode, message: impl Into<String>) -> Self {
        Self {
            code,
            message: message.into(),
            detail: None,
            hint: None,
        }
    }

    /// `22023 invalid_parameter_value`: an argument with an invalid value.
    pub fn invalid(message: impl Into<String>) -> Self {
        Self::new(PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE, message)
    }

    /// `0A000 feature_not_supported`: a property of an existing pipeline that cannot be changed.
    pub fn unsupported(what: &str) -> Self {
        Self::new(
            PgSqlErrorCode::ERRCODE_FEATURE_NOT_SUPPORTED,
            format!("{what} is not supported yet"),
        )
    }

    /// The particulars.
    pub fn detail(mut self, detail: impl Into<String>) -> Self {
        self.detail = Some(detail.into());
        self
    }

    /// What to do.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// What happened, alone.
    pub fn into_message(self) -> String {
        self.message
    }

    /// Raises it.
    pub fn raise(self) -> ! {
        let mut report = ErrorReport::new(self.code, self.message, "pg_ingest");
        if let Some(detail) = self.detail {
            report = report.set_detail(detail);
        }
        if let Some(hint) = self.hint {
            report = report.set_hint(hint);
        }
        report.report(PgLogLevel::ERROR);
        unreachable!("an ERROR report does not return")
    }
}

/// Keeps the statement out of the server's log, whatever error it ends with: it holds what nobody should see. For as long as the
/// transaction lasts.
pub fn keep_statement_out_of_log() {
    // SAFETY: static C strings; the setting goes back with the transaction that the error ends, which is after the log is
    // written.
    unsafe {
        pg_sys::set_config_option(
            c"log_min_error_statement".as_ptr(),
            c"panic".as_ptr(),
            pg_sys::GucContext::PGC_SUSET,
            pg_sys::GucSource::PGC_S_SESSION,
            pg_sys::GucAction::GUC_ACTION_LOCAL,
            true,
            pg_sys::WARNING as i32,
            false,
        );
    }
}

/// Raises the error of a failed result.
pub trait OrRaise<T> {
    /// The value, or the error raised.
    fn or_raise(self) -> T;
}

impl<T> OrRaise<T> for Result<T, UserError> {
    fn or_raise(self) -> T {
        self.unwrap_or_else(|error| error.raise())
    }
}

/// SPI's own errors are mistakes of ours (a wrong type, a missing column): raised as internal errors.
impl<T> OrRaise<T> for Result<T, pgrx::spi::Error> {
    fn or_raise(self) -> T {
        self.unwrap_or_else(|error| {
            UserError::new(
                PgSqlErrorCode::ERRCODE_INTERNAL_ERROR,
                format!("pg_ingest: {error}"),
            )
            .raise()
        })
    }
}

impl From<embedder::EmbedError> for UserError {
    fn from(error: embedder::EmbedError) -> Self {
        use embedder::ErrorClass as C;
        let code = match error.class {
            C::InvalidRequest => PgSqlErrorCode::ERRCODE_INVALID_PARAMETER_VALUE,
            C::TooLarge => PgSqlErrorCode::ERRCODE_PROGRAM_LIMIT_EXCEEDED,
            C::Internal => PgSqlErrorCode::ERRCODE_EXTERNAL_ROUTINE_EXCEPTION,
            _ => PgSqlErrorCode::ERRCODE_CONNECTION_FAILURE,
        };
        let raised = Self::new(code, error.message);
        match error.hint {
            Some(hint) => raised.hint(hint),
            None => raised,
        }
    }
}
