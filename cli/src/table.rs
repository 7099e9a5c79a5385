//! Tables for people: aligned columns, two spaces apart, no borders.

use comfy_table::{Cell, CellAlignment, Color, ContentArrangement, presets};

use crate::output::Style;

/// One cell. Numbers stand at the right of their column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Field {
    text: String,
    color: Option<Color>,
    number: bool,
}

pub(crate) fn text(text: impl Into<String>) -> Field {
    Field { text: text.into(), color: None, number: false }
}

pub(crate) fn number(text: impl Into<String>) -> Field {
    Field { text: text.into(), color: None, number: true }
}

/// A state of an app, a node or a rollout, in the colour of its meaning.
pub(crate) fn state(state: &str) -> Field {
    // "unreachable for 3m12s" is as red as "unreachable".
    let word = state.split_once(" for ").map_or(state, |(word, _)| word);
    Field { text: or_dash(state), color: color_of(word), number: false }
}

/// `columns` is `None` for `--no-headers`.
pub(crate) fn render(style: Style, columns: Option<&[&str]>, rows: Vec<Vec<Field>>) -> String {
    let mut table = comfy_table::Table::new();
    table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
    // The table would look at stdout by itself; `output.rs` has decided already.
    table.force_no_tty();
    if style.color {
        table.enforce_styling();
    }
    if let Some(columns) = columns {
        let numbers = |index: usize| rows.first().is_some_and(|row: &Vec<Field>| row[index].number);
        table.set_header(
            columns.iter().enumerate().map(|(index, name)| aligned(Cell::new(*name), numbers(index))),
        );
    }
    for row in rows {
        table.add_row(row.into_iter().map(Field::cell));
    }
    for column in table.column_iter_mut() {
        column.set_padding((0, 2));
    }
    let mut rendered = table.lines().map(|line| line.trim_end().to_owned()).collect::<Vec<_>>().join("\n");
    rendered.push('\n');
    rendered
}

pub(crate) fn or_dash(text: &str) -> String {
    if text.is_empty() { "-".to_owned() } else { text.to_owned() }
}

impl Field {
    fn cell(self) -> Cell {
        let cell = aligned(Cell::new(self.text), self.number);
        match self.color {
            Some(color) => cell.fg(color),
            None => cell,
        }
    }
}

fn aligned(cell: Cell, number: bool) -> Cell {
    cell.set_alignment(if number { CellAlignment::Right } else { CellAlignment::Left })
}

fn color_of(state: &str) -> Option<Color> {
    match state {
        "serving" | "ready" | "healthy" | "completed" | "done" => Some(Color::Green),
        "failed" | "rejected" | "unreachable" | "no quorum" | "rolled back" => Some(Color::Red),
        "degraded" | "overloaded" | "rolling out" | "rolling back" | "deleting" | "draining" | "cordoned"
        | "paused" | "progressing" => Some(Color::Yellow),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_and_lines_end_with_their_text() {
        let rows = vec![
            vec![text("web"), number("12"), state("serving")],
            vec![text("mail-relay"), number("7"), state("")],
        ];
        let table = render(Style::PLAIN, Some(&["APP", "VERSION", "STATE"]), rows);
        assert_eq!(
            table,
            "APP         VERSION  STATE\nweb              12  serving\nmail-relay        7  -\n"
        );
    }

    #[test]
    fn colour_does_not_move_columns() {
        let rows = vec![vec![state("ready"), text("x")], vec![state("unreachable"), text("y")]];
        let table = render(Style { color: true, animate: false }, None, rows);
        let plain = table.replace("\x1b[38;5;10m", "").replace("\x1b[38;5;9m", "").replace("\x1b[39m", "");
        assert!(table.contains('\x1b'), "{table:?}");
        assert!(plain.starts_with("ready        x"), "{plain:?}");
    }
}
