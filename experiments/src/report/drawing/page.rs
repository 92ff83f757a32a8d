//! The page around the plots: one file, nothing to load, no scripts.

use super::style::Fill;
use super::svg::{Svg, escape};

const STYLE: &str = "
:root{color-scheme:light}
body{font:15px/1.45 system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;color:#111;background:#fff;max-width:66rem;margin:0 auto;padding:1.5rem}
h1{font-size:1.7rem;margin:0 0 .3rem}h2{font-size:1.25rem;margin:2.2rem 0 .4rem;border-bottom:1px solid #999}
h3{font-size:1rem;margin:1.2rem 0 .2rem}
p.lead{margin:.2rem 0 1rem;font-size:1.05rem}
figure{margin:.4rem 0 1.2rem;break-inside:avoid}figcaption{color:#333;margin-top:.3rem;max-width:52rem}
svg{display:block;width:100%;height:auto}svg.definitions{position:absolute;width:0;height:0}
svg text{font:12px system-ui,-apple-system,'Segoe UI',Roboto,'DejaVu Sans',sans-serif;fill:#111}
svg text.label{font-size:13px}svg text.panel{font-size:13px;font-weight:600;paint-order:stroke;stroke:#fff;stroke-width:4px;stroke-linejoin:round}
.outline{fill:none;stroke:#444;stroke-width:1}.grid{stroke:#ccc;stroke-width:.7}.tick{stroke:#444;stroke-width:1}
.zero{stroke:#222;stroke-width:1}.mark{stroke:#111;stroke-width:1.2;stroke-dasharray:5 3}.front{stroke:#666;stroke-width:1.2;stroke-dasharray:8 4}
.scroll{overflow-x:auto}
table{border-collapse:collapse;margin:.6rem 0 1.2rem;font-variant-numeric:tabular-nums;font-size:.8rem}
th,td{padding:.22rem .35rem;text-align:right;border-bottom:1px solid #ccc}td{white-space:nowrap}
th{border-bottom:1.5px solid #444;vertical-align:bottom}th.text,td.text{text-align:left;white-space:normal;overflow-wrap:anywhere}
td.text{min-width:8rem}tr.part td{font-weight:600;text-align:left;background:#f0f0f0;border-top:1px solid #444}
tr.best td{font-weight:700}
footer{margin-top:2rem;color:#444;font-size:.85rem}
@media print{@page{margin:14mm}body{max-width:none;padding:0;font-size:10pt;-webkit-print-color-adjust:exact;print-color-adjust:exact}
h2,h3{break-after:avoid}thead{display:table-header-group}tr{break-inside:avoid}.scroll{overflow:visible}table{font-size:7.5pt}th,td{padding:.15rem .3rem}}
";

/// A page that is being put together.
pub(crate) struct HtmlPage {
    title: String,
    body: String,
}

impl HtmlPage {
    pub(crate) fn new(title: &str, lead: &str) -> HtmlPage {
        let (title, lead) = (escape(title), escape(lead));
        HtmlPage {
            body: format!("<h1>{title}</h1>\n<p class=\"lead\">{lead}</p>\n"),
            title,
        }
    }

    pub(crate) fn heading(&mut self, text: &str) {
        self.body += &format!("<h2>{}</h2>\n", escape(text));
    }

    pub(crate) fn paragraph(&mut self, text: &str) {
        self.body += &format!("<p>{}</p>\n", escape(text));
    }

    /// A plot with its title, and a sentence that says how to read it.
    pub(crate) fn figure(&mut self, title: &str, svg: Svg, how_to_read: &str) {
        self.body += &format!(
            "<figure><h3>{}</h3>\n{}\n<figcaption>{}</figcaption></figure>\n",
            escape(title),
            svg.finish(title),
            escape(how_to_read)
        );
    }

    pub(crate) fn table(&mut self, table: Table) {
        self.body += &table.finish();
    }

    pub(crate) fn finish(self) -> String {
        let HtmlPage { title, body } = self;
        let definitions = Fill::definitions();
        let version = env!("CARGO_PKG_VERSION");
        format!(
            "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n\
             <body>\n{definitions}\n{body}<footer>Made by Hmmvisor {version}.</footer>\n</body>\n</html>\n"
        )
    }
}

/// A table; columns whose name begins with `<` are text. Policies in them are broken between their parts.
pub(crate) struct Table {
    columns: Vec<&'static str>,
    rows: Vec<Line>,
}

enum Line {
    Cells(Vec<String>),
    /// The cells of a row that stands out.
    Best(Vec<String>),
    /// A heading for the following rows.
    Part(String),
}

/// Lets a policy be broken after each of its parts. A comma in a number is no such place.
fn breakable(text: &str) -> String {
    let mut broken = String::new();
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        broken.push(c);
        let in_number = rest.peek().is_some_and(char::is_ascii_digit);
        if c == '+' || c == ',' && !in_number {
            broken += "<wbr>";
        }
    }
    broken
}

/// A cell without a value. Columns that have nothing else are left out.
pub(crate) const NOTHING: &str = "–";

impl Table {
    pub(crate) fn new(columns: &[&'static str]) -> Table {
        Table {
            columns: columns.to_vec(),
            rows: Vec::new(),
        }
    }

    pub(crate) fn row(&mut self, cells: &[String]) {
        self.rows.push(Line::Cells(cells.to_vec()));
    }

    /// Adds a row that stands out.
    pub(crate) fn best_row(&mut self, cells: &[String]) {
        self.rows.push(Line::Best(cells.to_vec()));
    }

    pub(crate) fn part(&mut self, title: &str) {
        self.rows.push(Line::Part(title.to_owned()));
    }

    fn finish(self) -> String {
        let has_values = |column: &usize| {
            self.rows.iter().any(|line| match line {
                Line::Cells(cells) | Line::Best(cells) => cells[*column] != NOTHING,
                Line::Part(_) => false,
            })
        };
        let shown: Vec<usize> = (0..self.columns.len()).filter(has_values).collect();
        let head = self.cells("th", &shown, |column| {
            self.columns[column].trim_start_matches('<')
        });
        let row = |cells: &[String], class: &str| {
            let cells = self.cells("td", &shown, |column| &cells[column]);
            format!("<tr{class}>{cells}</tr>\n")
        };
        let mut rows = String::new();
        for line in &self.rows {
            rows += &match line {
                Line::Cells(cells) => row(cells, ""),
                Line::Best(cells) => row(cells, " class=\"best\""),
                Line::Part(title) => format!(
                    "<tr class=\"part\"><td colspan=\"{}\">{}</td></tr>\n",
                    shown.len(),
                    escape(title)
                ),
            };
        }
        format!(
            "<div class=\"scroll\"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>\n"
        )
    }

    fn cells<'t>(&self, tag: &str, shown: &[usize], text: impl Fn(usize) -> &'t str) -> String {
        let cell = |column: &usize| {
            let is_text = self.columns[*column].starts_with('<');
            let class = if is_text { " class=\"text\"" } else { "" };
            let mut text = escape(text(*column));
            if is_text {
                text = breakable(&text);
            }
            format!("<{tag}{class}>{text}</{tag}>")
        };
        shown.iter().map(cell).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_broken_between_their_parts_and_numbers_are_not() {
        let policy = "density:threshold=1,min_faults=2+lru";
        let broken = "density:threshold=1,<wbr>min_faults=2+<wbr>lru";
        assert_eq!(breakable(policy), broken);
        assert_eq!(breakable("13,363 pages, all"), "13,363 pages,<wbr> all");
    }
}
