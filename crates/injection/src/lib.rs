//! Points of a document's way at which a test build can be made to wait, fail or die.
//!
//! What is to happen at a point lies in a [`Table`] in shared memory, which a test sets by SQL. Without the feature
//! `points` there is no table, and [`reach`] and [`pass`] are nothing.

use std::fmt;
use std::str::FromStr;

/// A point of the way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub enum Point {
    /// Documents are claimed, and the claim is committed. On the worker's main thread.
    AfterClaim,
    /// A document has been split. On a splitter's thread.
    AfterSplit,
    /// The budget has let a request go. On the thread of the remote calls, as are the next two.
    AfterAdmit,
    /// The provider has the request and has begun to answer.
    AfterSend,
    /// A part of the answer's body has come.
    MidAnswer,
    /// A batch of documents is written and not committed. On the main thread, as are the next two.
    BeforeCommit,
    /// A batch of documents is committed.
    AfterCommit,
    /// Claims are about to be freed, at a worker's start or end.
    BeforeRelease,
}

/// All of them, in the order of the way.
pub const POINTS: [Point; 8] = [
    Point::AfterClaim,
    Point::AfterSplit,
    Point::AfterAdmit,
    Point::AfterSend,
    Point::MidAnswer,
    Point::BeforeCommit,
    Point::AfterCommit,
    Point::BeforeRelease,
];

/// What can happen at a point.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    /// Nothing.
    Pass,
    /// Whoever comes there stays, until something else is to happen there.
    Wait,
    /// The step fails, once.
    Error,
    /// The process dies of SIGABRT, once.
    Abort,
}

/// The error of a step that was told to fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Injected(pub Point);

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "injected error at {}", self.0)
    }
}

impl std::error::Error for Injected {}

/// A word that names no point or no action.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unknown(pub String);

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::AfterClaim => "after_claim",
            Self::AfterSplit => "after_split",
            Self::AfterAdmit => "after_admit",
            Self::AfterSend => "after_send",
            Self::MidAnswer => "mid_answer",
            Self::BeforeCommit => "before_commit",
            Self::AfterCommit => "after_commit",
            Self::BeforeRelease => "before_release",
        })
    }
}

impl FromStr for Point {
    type Err = Unknown;

    fn from_str(word: &str) -> Result<Self, Unknown> {
        let known = POINTS.into_iter().find(|point| point.to_string() == word);
        known.ok_or_else(|| Unknown(word.to_owned()))
    }
}

impl FromStr for Action {
    type Err = Unknown;

    fn from_str(word: &str) -> Result<Self, Unknown> {
        match word {
            "pass" => Ok(Self::Pass),
            "wait" => Ok(Self::Wait),
            "error" => Ok(Self::Error),
            "abort" => Ok(Self::Abort),
            _ => Err(Unknown(word.to_owned())),
        }
    }
}

#[cfg(feature = "points")]
mod table;
#[cfg(feature = "points")]
pub use table::{Table, pass, reach, use_table};

/// Comes to a point, on a thread that may sleep in `nap` for as long as it is to wait there.
///
/// # Errors
/// When the step is to fail.
#[cfg(not(feature = "points"))]
#[inline]
pub fn reach(_: Point, _nap: impl FnMut()) -> Result<(), Injected> {
    Ok(())
}

/// Comes to a point, in a task.
///
/// # Errors
/// When the step is to fail.
#[cfg(not(feature = "points"))]
#[inline]
pub async fn pass(_: Point) -> Result<(), Injected> {
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_point_has_a_name_of_its_own() {
        for (number, point) in POINTS.into_iter().enumerate() {
            assert_eq!(point as usize, number);
            assert_eq!(point.to_string().parse(), Ok(point));
        }
        assert!("somewhere".parse::<Point>().is_err());
        assert!("explode".parse::<Action>().is_err());
    }
}
