//! The figures of all rounds, as a table and as ratios that can be kept and compared.

use std::{collections::BTreeMap, fs, path::Path};

use crate::row::{Measured, Row};

/// By how much a ratio may exceed its baseline. Repeated runs on an idle machine differ by less.
const TOLERANCE: f64 = 1.05;

/// Per row and peer one figure a round; the first peer is us.
pub(crate) struct Figures {
    peers: Vec<&'static str>,
    by_row: BTreeMap<String, Vec<Vec<f64>>>,
    pub(crate) failed: u64,
}

impl Figures {
    pub(crate) fn new(peers: Vec<&'static str>) -> Figures {
        Figures { peers, by_row: BTreeMap::new(), failed: 0 }
    }

    pub(crate) fn record(&mut self, peer: usize, row: &Row, measured: &Measured) {
        for (suffix, figure) in &measured.figures {
            let row = self.by_row.entry(format!("{}{suffix}", row.name));
            row.or_insert_with(|| vec![Vec::new(); self.peers.len()])[peer].push(*figure);
        }
        if peer == 0 {
            self.failed += measured.failed;
        }
        if measured.failed > 0 {
            println!("{} {}: {measured}", self.peers[peer], row.name);
        }
    }

    pub(crate) fn add(&mut self, other: Figures) {
        self.failed += other.failed;
        for (row, peers) in other.by_row {
            let mine = self.by_row.entry(row).or_insert_with(|| vec![Vec::new(); peers.len()]);
            mine.iter_mut().zip(peers).for_each(|(mine, more)| mine.extend(more));
        }
    }

    /// Medians in Markdown, the best in bold, and behind each peer ours divided by its.
    pub(crate) fn print(&self, rows: &[&Row]) {
        let heads = self.peers.iter().map(|peer| format!(" {peer} |")).collect::<String>();
        let ratios = self.peers[1..].iter().map(|peer| format!(" ours / {peer} |")).collect::<String>();
        println!("| row | work |{heads}{ratios}");
        println!("|{}", "---|".repeat(2 * self.peers.len() + 1));
        for row in rows {
            let named = self.by_row.iter().filter(|(name, _)| name.split(' ').next() == Some(row.name));
            for (name, peers) in named {
                let medians: Vec<f64> = peers.iter().map(|figures| median(figures)).collect();
                let best = medians.iter().copied().fold(f64::MAX, f64::min);
                let digits = row.digits();
                let cells = medians.iter().map(|median| {
                    let bold = if *median <= best { "**" } else { "" };
                    format!(" {bold}{median:.digits$}{bold} |")
                });
                let suffix = name.strip_prefix(row.name).unwrap_or_default();
                let unit = if suffix.is_empty() { "" } else { ", µs" };
                let cells = cells.collect::<String>();
                let ratios = (1..peers.len()).map(|peer| format!(" {:.2} |", self.ratio_to(name, peer)));
                println!("| {name} | {}{suffix}{unit} |{cells}{}", row.work, ratios.collect::<String>());
            }
        }
    }

    /// `row/peer`.
    pub(crate) fn ratio(&self, name: &str) -> Option<f64> {
        let (row, peer) = name.split_once('/')?;
        let peer = self.peers.iter().position(|known| *known == peer)?;
        self.by_row.contains_key(row).then(|| self.ratio_to(row, peer))
    }

    /// The median over the rounds: what disturbs one round moves both sides of it.
    fn ratio_to(&self, row: &str, peer: usize) -> f64 {
        let figures = &self.by_row[row];
        let ratios: Vec<f64> =
            figures[0].iter().zip(&figures[peer]).map(|(ours, theirs)| ours / theirs).collect();
        median(&ratios)
    }

    fn names(&self) -> Vec<String> {
        let rows = self.by_row.keys();
        rows.flat_map(|row| self.peers[1..].iter().map(move |peer| format!("{row}/{peer}"))).collect()
    }

    pub(crate) fn save(&self, file: &Path) {
        let line = |name: String| format!("{name}\t{:.3}\n", self.ratio(&name).expect("it has that name"));
        fs::write(file, self.names().into_iter().map(line).collect::<String>()).unwrap();
    }

    /// Which of ours got worse; what the baseline does not have is said and passes.
    pub(crate) fn worse_than(&self, baseline: &BTreeMap<String, f64>) -> Vec<String> {
        let is_worse = |name: &String| match baseline.get(name) {
            Some(known) => self.ratio(name).is_some_and(|ratio| ratio > known * TOLERANCE),
            None => {
                println!("{name}: not in the baseline");
                false
            }
        };
        self.names().into_iter().filter(is_worse).collect()
    }
}

pub(crate) fn read(file: &Path) -> BTreeMap<String, f64> {
    let text = fs::read_to_string(file).unwrap();
    let lines = text.lines().filter_map(|line| line.split_once('\t'));
    lines.map(|(name, ratio)| (name.to_owned(), ratio.trim().parse().unwrap())).collect()
}

pub(crate) fn median(figures: &[f64]) -> f64 {
    let mut figures = figures.to_vec();
    figures.sort_by(f64::total_cmp);
    figures.get(figures.len() / 2).copied().unwrap_or(f64::NAN)
}
