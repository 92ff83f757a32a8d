//! Messages as lines for people.

use std::fmt::{self, Write as _};

use hmm_backend::text::printable_lines;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// `hmmvisor: `, `error: ` if it is one, the message, and ` name=value` for what belongs to it.
pub(super) struct Text;

impl<S, N> FormatEvent<S, N> for Text
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(
        &self,
        _: &FmtContext<'_, S, N>,
        mut line: Writer<'_>,
        event: &Event<'_>,
    ) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        let Fields { message, others } = fields;
        let weight = match *event.metadata().level() {
            Level::ERROR => "error: ",
            _ => "",
        };
        // It may have the words of a script or a file in it.
        let text = format!("{message}{others}");
        writeln!(
            line,
            "hmmvisor: {weight}{}",
            printable_lines(text.trim_end())
        )
    }
}

/// The fields of an event.
#[derive(Default)]
struct Fields {
    message: String,
    /// ` name=value` for each of the others.
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        // Writing into a string does not fail.
        let _ = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
    }
}
