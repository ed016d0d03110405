//! Queries that only read. Unlike pgrx's own shorthands they take no transaction id: they serve on a hot standby too, and
//! on a primary a search leaves nothing for vacuum to freeze. And what writes says so at once on a standby.

use std::ffi::CStr;

use pgrx::datum::DatumWithOid;
use pgrx::prelude::*;
use pgrx::spi::Error;

/// The first column of a query's first row.
pub fn one<T: FromDatum + IntoDatum>(
    query: &str,
    arguments: &[DatumWithOid],
) -> Result<Option<T>, Error> {
    Spi::connect(|client| client.select(query, Some(1), arguments)?.first().get_one())
}

/// The first two columns of a query's first row.
pub fn two<A: FromDatum + IntoDatum, B: FromDatum + IntoDatum>(
    query: &str,
    arguments: &[DatumWithOid],
) -> Result<(Option<A>, Option<B>), Error> {
    Spi::connect(|client| client.select(query, Some(1), arguments)?.first().get_two())
}

/// Raises `25006`, as a statement that writes does, where nothing can be written: on a standby and in a transaction that is
/// read only. `command` is what the user called.
pub fn refuse_if_read_only(command: &CStr) {
    // SAFETY: a C string.
    unsafe { pg_sys::PreventCommandIfReadOnly(command.as_ptr()) };
}
