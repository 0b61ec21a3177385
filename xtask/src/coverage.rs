//! The table of every way around, `docs/coverage.md`: compared with what the suites measured, or
//! written from it.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::cache;

/// The column of this machine's kernel, where it judges files by fanotify: kernels that take no LSM
/// programs are alike in all that matters here.
const HARDENED: &str = "6.18 hardened, fanotify";
/// The column whose cells need a reason when they say anything but [`DENIED`].
const JUDGED: &str = "6.12 lsm";
/// The cell of a way that is closed.
const DENIED: &str = "denied";
/// The cell of a way that has not been measured.
const UNKNOWN: &str = "?";
/// Where the reasons begin.
const REASONS: &str = "## Why not";

/// What one suite measured.
#[derive(Debug)]
struct Column {
    title: String,
    /// Each way, by its name with its number, and what came of it.
    cells: Vec<(String, String)>,
    /// Whether every way had to be measured.
    whole: bool,
}

/// What the suites of one run measured.
#[derive(Debug, Default)]
pub struct Measured {
    columns: Vec<Column>,
}

impl Measured {
    /// Takes the `way` lines out of a suite's output. A suite that ran no way at all is left out.
    pub fn add(&mut self, kernel: Option<&str>, output: &str, whole: bool) {
        let lines = || output.lines().map(str::trim);
        let backend = lines().find_map(|line| line.strip_prefix("backend: ")).unwrap_or("none");
        let cells: Vec<(String, String)> = lines()
            .filter_map(|line| line.strip_prefix("way ")?.split_once(" | "))
            .map(|(way, outcome)| (way.to_owned(), outcome.to_owned()))
            .collect();
        let title = match kernel {
            Some(line) => format!("{line} {backend}"),
            None if backend == "fanotify" => HARDENED.to_owned(),
            None => format!("{} {backend}", nearest(&own_release())),
        };
        if whole || !cells.is_empty() {
            self.columns.push(Column { title, cells, whole });
        }
    }

    /// Compares the table with what was measured, or first writes the latter into it. What is returned
    /// are the complaints; an error is a table that cannot be read or written.
    pub fn settle(&self, write: bool) -> Result<Vec<String>> {
        if self.columns.is_empty() {
            return Ok(Vec::new());
        }
        let path: PathBuf = cache::checkout().join("docs/coverage.md");
        let text =
            fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let mut page = Page::parse(&text)?;
        if write {
            page.take(&self.columns);
            fs::write(&path, page.to_string())
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(page.complaints(&self.columns))
    }
}

/// The test kernel that is most like a release: the newest one that is not newer.
fn nearest(release: &str) -> &'static str {
    let number = |text: &str| -> (u32, u32) {
        let mut parts = text.split(['.', '-']).map(|part| part.parse().unwrap_or(0));
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    let mut lines = crate::kernels::KERNELS.iter().map(|row| row.line);
    lines.rfind(|line| number(line) <= number(release)).unwrap_or(crate::kernels::DEFAULT)
}

fn own_release() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default()
}

/// The page in parts: what is before the table and after it stays as somebody wrote it.
#[derive(Debug, PartialEq, Eq)]
struct Page {
    before: String,
    titles: Vec<String>,
    /// Each way and its cells.
    rows: Vec<(String, Vec<String>)>,
    after: String,
}

impl Page {
    fn parse(text: &str) -> Result<Self> {
        let from = text.find("| way |").context("docs/coverage.md has no table (`| way | …`)")?;
        let (before, rest) = text.split_at(from);
        let length =
            rest.split_inclusive('\n').take_while(|line| line.starts_with('|')).map(str::len).sum();
        let (table, after) = rest.split_at(length);
        let mut lines = table.lines().map(|line| {
            line.trim().trim_matches('|').split('|').map(|cell| cell.trim().to_owned())
        });
        let titles = lines.next().map(|line| line.skip(1).collect()).unwrap_or_default();
        let rows = lines
            .skip(1)
            .map(|mut line| (line.next().unwrap_or_default(), line.collect()))
            .collect();
        Ok(Self { before: before.to_owned(), titles, rows, after: after.to_owned() })
    }

    /// Puts what was measured into its cells. Ways that a whole run did not measure are gone.
    fn take(&mut self, columns: &[Column]) {
        for Column { title, cells, whole } in columns {
            let Some(at) = self.titles.iter().position(|own| own == title) else {
                continue;
            };
            if *whole {
                self.rows.retain(|(way, _)| cells.iter().any(|(own, _)| own == way));
            }
            for (way, outcome) in cells {
                let row = match self.rows.iter().position(|(own, _)| own == way) {
                    Some(row) => row,
                    None => {
                        // Ways of one letter stand together, by number.
                        let row = self.rows.partition_point(|(own, _)| key(own) < key(way));
                        let unknown = vec![UNKNOWN.to_owned(); self.titles.len()];
                        self.rows.insert(row, (way.clone(), unknown));
                        row
                    }
                };
                self.rows[row].1[at].clone_from(outcome);
            }
        }
    }

    fn complaints(&self, columns: &[Column]) -> Vec<String> {
        let mut complaints = Vec::new();
        for Column { title, cells, whole } in columns {
            let Some(at) = self.titles.iter().position(|own| own == title) else {
                complaints.push(format!("coverage: docs/coverage.md has no column `{title}`"));
                continue;
            };
            for (way, outcome) in cells {
                let row = self.rows.iter().find(|(own, _)| own == way);
                let says = row.map_or("nothing", |(_, cells)| &cells[at]);
                // What was never measured there says nothing that could be wrong.
                if says != outcome && says != UNKNOWN {
                    complaints.push(format!(
                        "coverage: {way} on {title} is `{outcome}`, and docs/coverage.md says \
                         `{says}` (`--write-coverage` writes what is so)"
                    ));
                }
            }
            let silent: Vec<&str> = self
                .rows
                .iter()
                .map(|(way, _)| way.as_str())
                .filter(|way| *whole && !cells.iter().any(|(own, _)| own == way))
                .map(number)
                .collect();
            if !silent.is_empty() {
                complaints
                    .push(format!("coverage: not measured on {title}: {}", silent.join(", ")));
            }
        }
        complaints.extend(self.unreasoned());
        complaints
    }

    /// The rows without a reason that need one, and the reasons of rows that need none.
    fn unreasoned(&self) -> Vec<String> {
        let Some(at) = self.titles.iter().position(|own| own == JUDGED) else {
            return vec![format!("coverage: docs/coverage.md has no column `{JUDGED}`")];
        };
        let reasons: BTreeSet<&str> = self
            .after
            .split_once(REASONS)
            .map(|(_, reasons)| reasons)
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.strip_prefix("- **")?.split_once("**"))
            .map(|(way, _)| way)
            .collect();
        let open: BTreeSet<&str> = self
            .rows
            .iter()
            .filter(|(_, cells)| ![DENIED, UNKNOWN].contains(&cells[at].as_str()))
            .map(|(way, _)| number(way))
            .collect();
        let without = open.difference(&reasons).map(|way| {
            format!(
                "coverage: docs/coverage.md gives no reason why {way} is not denied on {JUDGED}"
            )
        });
        let stale = reasons.difference(&open).map(|way| {
            format!(
                "coverage: docs/coverage.md has a reason for {way}, which is denied on {JUDGED}"
            )
        });
        without.chain(stale).collect()
    }
}

/// The number of a way, which is the first word of its name.
fn number(way: &str) -> &str {
    way.split(' ').next().unwrap_or(way)
}

/// Where a way stands in the table.
fn key(way: &str) -> (usize, u32) {
    let (letter, rest) = number(way).split_at(number(way).len().min(1));
    ("FXNIT".find(letter).unwrap_or(usize::MAX), rest.parse().unwrap_or(u32::MAX))
}

impl std::fmt::Display for Page {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(out, "{}| way | {} |\n|---", self.before, self.titles.join(" | "))?;
        writeln!(out, "{}|", "|---".repeat(self.titles.len()))?;
        for (way, cells) in &self.rows {
            writeln!(out, "| {way} | {} |", cells.join(" | "))?;
        }
        write!(out, "{}", self.after)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "# Coverage\n\n| way | 5.10 fanotify | 6.12 lsm |\n|---|---|---|\n\
        | F1 links | denied | denied |\n| F10 overlay | not covered | partly |\n\n\
        ## Why not\n\n- **F10** no hook\n";

    fn measured(kernel: &str, cells: &[(&str, &str)], whole: bool) -> Measured {
        let mut output = String::from("backend: lsm\n");
        for (way, outcome) in cells {
            output += &format!("way {way} | {outcome}\r\n");
        }
        let mut measured = Measured::default();
        measured.add(Some(kernel), &output, whole);
        measured
    }

    #[test]
    fn a_page_is_written_as_it_was_read() -> Result<()> {
        assert_eq!(Page::parse(TEXT)?.to_string(), TEXT);
        Ok(())
    }

    #[test]
    fn cells_that_differ_are_named_and_so_are_ways_that_did_not_report() -> Result<()> {
        let page = Page::parse(TEXT)?;
        let same = measured("6.12", &[("F1 links", "denied"), ("F10 overlay", "partly")], true);
        assert_eq!(page.complaints(&same.columns), Vec::<String>::new());
        let other = measured("6.12", &[("F1 links", "observed only")], true);
        let complaints = page.complaints(&other.columns).join("\n");
        assert!(complaints.contains("F1 links on 6.12 lsm is `observed only`"), "{complaints}");
        assert!(complaints.contains("not measured on 6.12 lsm: F10"), "{complaints}");
        let some = measured("6.12", &[("F1 links", "denied")], false);
        assert_eq!(page.complaints(&some.columns), Vec::<String>::new());
        Ok(())
    }

    #[test]
    fn a_way_that_is_not_denied_has_a_reason_and_no_other_has() -> Result<()> {
        let mut page = Page::parse(TEXT)?;
        page.take(&measured("6.12", &[("F2 more", "not covered")], false).columns);
        let ways: Vec<&str> = page.rows.iter().map(|(way, _)| way.as_str()).collect();
        assert_eq!(ways, ["F1 links", "F2 more", "F10 overlay"]);
        let complaints = page.unreasoned();
        assert_eq!(complaints.len(), 1, "{complaints:?}");
        assert!(complaints[0].contains("F2"), "{complaints:?}");
        page.take(
            &measured("6.12", &[("F2 more", "denied"), ("F10 overlay", "denied")], false).columns,
        );
        let complaints = page.unreasoned();
        assert!(complaints[0].contains("a reason for F10, which is denied"), "{complaints:?}");
        Ok(())
    }

    #[test]
    fn another_kernel_is_compared_with_the_nearest_one() {
        assert_eq!(nearest("6.14.0-1-amd64"), "6.12");
        assert_eq!(nearest("9.1"), "7.3");
    }
}
