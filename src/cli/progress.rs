//! Progress: what the library reports, shown as a bar on a terminal or as JSON lines on stderr.
//!
//! The library's threads only add to two counters; one thread here looks at them. The time left is estimated from the
//! throughput since the phase began, in bytes, or in files where a phase has no bytes.

use super::json::{Body, Progress};
use super::output::Output;
use super::render;
use super::signals::Signals;
use ckpt::bytes::ByteCount;
use ckpt::events::{Event, Observer};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Who wants to see progress.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Nobody.
    Silent,
    /// A person at a terminal.
    Bar,
    /// A program that reads stderr.
    Json,
}

const BAR_INTERVAL: Duration = Duration::from_millis(100);
const JSON_INTERVAL: Duration = Duration::from_millis(500);

/// The observer of a run.
pub struct Reporter {
    shared: Arc<Shared>,
    signals: Signals,
    ticker: Option<JoinHandle<()>>,
}

struct Shared {
    output: Arc<Output>,
    mode: Mode,
    bytes: AtomicU64,
    files: AtomicU64,
    problems: AtomicU64,
    state: Mutex<State>,
    stop: Condvar,
}

#[derive(Default)]
struct State {
    phase: Option<Phase>,
    bar: Option<ProgressBar>,
    stopping: bool,
}

#[derive(Debug, Clone)]
struct Phase {
    name: &'static str,
    began: Instant,
    bytes_total: Option<u64>,
    files_total: Option<u64>,
}

impl Reporter {
    /// An observer that shows progress as `mode` says.
    pub fn new(output: Arc<Output>, mode: Mode, signals: Signals) -> Reporter {
        let shared = Arc::new(Shared {
            output,
            mode,
            bytes: AtomicU64::new(0),
            files: AtomicU64::new(0),
            problems: AtomicU64::new(0),
            state: Mutex::new(State::default()),
            stop: Condvar::new(),
        });
        let interval = match mode {
            Mode::Silent => None,
            Mode::Bar => Some(BAR_INTERVAL),
            Mode::Json => Some(JSON_INTERVAL),
        };
        let ticker = interval.and_then(|interval| {
            let shared = Arc::clone(&shared);
            // Without the thread there is no progress to see, and nothing else is lost.
            std::thread::Builder::new().name("progress".to_owned()).spawn(move || shared.tick(interval)).ok()
        });
        Reporter { shared, signals, ticker }
    }

    /// Ends the last phase and takes the bar away; the reporter can be used again.
    pub fn end_phase(&self) {
        self.shared.end_phase();
    }

    /// Shows warnings of who cannot borrow this reporter, and nothing else.
    pub fn warnings(&self) -> Arc<dyn Observer> {
        Arc::new(Warnings(Arc::clone(&self.shared)))
    }

    /// How many files with problems were reported so far.
    pub fn problems(&self) -> u64 {
        self.shared.problems.load(Ordering::Relaxed)
    }
}

impl Drop for Reporter {
    fn drop(&mut self) {
        self.shared.end_phase();
        self.shared.state().stopping = true;
        self.shared.stop.notify_all();
        if let Some(ticker) = self.ticker.take() {
            // It holds no result; had it panicked, its last word was said.
            let _ = ticker.join();
        }
    }
}

struct Warnings(Arc<Shared>);

impl Observer for Warnings {
    fn on_event(&self, event: &Event<'_>) {
        if let Event::Warning { text } = event {
            self.0.beside_the_bar(|output| output.warning(text));
        }
    }

    fn is_interrupted(&self) -> bool {
        false
    }
}

impl Observer for Reporter {
    fn on_event(&self, event: &Event<'_>) {
        let shared = &self.shared;
        match event {
            Event::Progress { bytes, files } => {
                shared.bytes.fetch_add(*bytes, Ordering::Relaxed);
                shared.files.fetch_add(*files, Ordering::Relaxed);
            }
            Event::Phase { name, bytes_total, files_total } => shared.begin_phase(name, *bytes_total, *files_total),
            Event::Totals { bytes_total, files_total } => {
                if let Some(phase) = &mut shared.state().phase {
                    (phase.bytes_total, phase.files_total) = (Some(*bytes_total), Some(*files_total));
                }
            }
            Event::Warning { text } => shared.beside_the_bar(|output| output.warning(text)),
            Event::FileProblem { path, error } => {
                shared.problems.fetch_add(1, Ordering::Relaxed);
                shared.beside_the_bar(|output| output.problem(path, error));
            }
            Event::Detail { text } => shared.beside_the_bar(|output| output.detail(text)),
            _ => {}
        }
    }

    fn is_interrupted(&self) -> bool {
        self.signals.is_interrupted()
    }

    fn wants_totals(&self) -> bool {
        self.shared.mode != Mode::Silent
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin_phase(&self, name: &'static str, bytes_total: Option<u64>, files_total: Option<u64>) {
        self.end_phase();
        let phase = Phase { name, began: Instant::now(), bytes_total, files_total };
        self.beside_the_bar(|output| output.detail(&phase.introduction()));
        let mut state = self.state();
        self.bytes.store(0, Ordering::Relaxed);
        self.files.store(0, Ordering::Relaxed);
        if self.mode == Mode::Bar {
            state.bar = Some(new_bar(name));
        }
        state.phase = Some(phase);
        self.show(&state);
    }

    fn end_phase(&self) {
        let mut state = self.state();
        self.show(&state);
        state.phase = None;
        if let Some(bar) = state.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn tick(&self, interval: Duration) {
        let mut state = self.state();
        while !state.stopping {
            let waited = self.stop.wait_timeout(state, interval).unwrap_or_else(PoisonError::into_inner);
            state = waited.0;
            if waited.1.timed_out() {
                self.show(&state);
            }
        }
    }

    fn show(&self, state: &State) {
        let Some(phase) = &state.phase else { return };
        let (bytes, files) = (self.bytes.load(Ordering::Relaxed), self.files.load(Ordering::Relaxed));
        let progress = phase.progress(bytes, files, phase.began.elapsed().as_secs_f64());
        match (self.mode, &state.bar) {
            (Mode::Json, _) => self.output.talk_document(Body::Progress(progress)),
            (Mode::Bar, Some(bar)) => {
                bar.set_message(progress.sentence());
                bar.tick();
            }
            _ => {}
        }
    }

    fn beside_the_bar(&self, talk: impl FnOnce(&Output)) {
        let state = self.state();
        match &state.bar {
            Some(bar) => bar.suspend(|| talk(&self.output)),
            None => talk(&self.output),
        }
    }
}

impl Phase {
    fn introduction(&self) -> String {
        match (self.bytes_total, self.files_total) {
            (Some(bytes), Some(files)) => {
                format!("{}: {} in {}", self.name, ByteCount(bytes), render::counted(files, "file", "files"))
            }
            (Some(bytes), None) => format!("{}: {}", self.name, ByteCount(bytes)),
            (None, Some(files)) => format!("{}: {}", self.name, render::counted(files, "file", "files")),
            (None, None) => self.name.to_owned(),
        }
    }

    fn progress(&self, bytes_done: u64, files_done: u64, elapsed: f64) -> Progress {
        let mut progress = Progress {
            phase: self.name.to_owned(),
            bytes_done,
            bytes_total: self.bytes_total,
            files_done,
            files_total: self.files_total,
            seconds_elapsed: rounded(elapsed),
            eta_seconds: None,
        };
        let (done, total) = progress.measure();
        progress.eta_seconds = total.and_then(|total| eta_seconds(done, total, elapsed)).map(rounded);
        progress
    }
}

impl Progress {
    /// What the time left follows from: bytes if the phase has any, else files.
    fn measure(&self) -> (u64, Option<u64>) {
        match (self.bytes_total, self.files_total) {
            (Some(bytes), _) if bytes > 0 => (self.bytes_done, Some(bytes)),
            (_, Some(files)) if files > 0 => (self.files_done, Some(files)),
            _ if self.bytes_done > 0 => (self.bytes_done, None),
            _ => (self.files_done, None),
        }
    }

    /// `[======>     ] 1.00 GiB of 2.00 GiB, 1 of 2 files, 512 MiB/s, 2 s left`.
    fn sentence(&self) -> String {
        let bar = match self.measure() {
            (done, Some(total)) => format!("[{}] ", bar(done, total)),
            (_, None) => String::new(),
        };
        format!("{bar}{}", self.amounts())
    }

    fn amounts(&self) -> String {
        let mut parts = Vec::new();
        match (self.bytes_done, self.bytes_total) {
            (_, Some(total)) if total > 0 => {
                parts.push(format!("{} of {}", ByteCount(self.bytes_done), ByteCount(total)));
            }
            (1.., _) => parts.push(ByteCount(self.bytes_done).to_string()),
            _ => {}
        }
        match (self.files_done, self.files_total) {
            (done, Some(total)) if total > 0 => {
                parts.push(format!("{done} of {}", render::counted(total, "file", "files")))
            }
            (done @ 1.., _) => parts.push(render::counted(done, "file", "files")),
            _ => {}
        }
        if self.bytes_done > 0 && self.seconds_elapsed >= 0.5 {
            // Far below 2^53, where a float counts exactly; a rate is rounded anyway.
            parts.push(format!("{}/s", ByteCount((self.bytes_done as f64 / self.seconds_elapsed) as u64)));
        }
        match self.eta_seconds {
            Some(eta) => parts.push(format!("{} left", render::duration(eta))),
            None => parts.push(format!("{} so far", render::duration(self.seconds_elapsed))),
        }
        parts.join(", ")
    }
}

/// The seconds left at the throughput since the phase began; none before anything is done.
fn eta_seconds(done: u64, total: u64, elapsed: f64) -> Option<f64> {
    if done >= total {
        return Some(0.0);
    }
    if done == 0 || elapsed <= 0.0 {
        return None;
    }
    Some(elapsed * (total - done) as f64 / done as f64)
}

/// To whole milliseconds: more digits would be noise.
fn rounded(seconds: f64) -> f64 {
    (seconds * 1_000.0).round() / 1_000.0
}

/// How much of `total` is done, as a bar of fixed width.
fn bar(done: u64, total: u64) -> String {
    const WIDTH: usize = 24;
    let filled = u128::from(done.min(total)) * WIDTH as u128 / u128::from(total.max(1));
    let filled = usize::try_from(filled).unwrap_or(WIDTH);
    let tip = if filled < WIDTH { ">" } else { "" };
    format!("{:<WIDTH$}", format!("{}{tip}", "=".repeat(filled)))
}

fn new_bar(name: &'static str) -> ProgressBar {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    // A line too long for the terminal is cut, not wrapped.
    if let Ok(style) = ProgressStyle::with_template("{spinner} {prefix} {wide_msg}") {
        bar.set_style(style);
    }
    bar.set_prefix(name);
    bar
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_holds_under_a_constant_rate() {
        // 1,000 bytes at 10 bytes a second: 100 seconds in all.
        for done in [1u64, 100, 500, 999] {
            let elapsed = done as f64 / 10.0;
            let left = eta_seconds(done, 1_000, elapsed).expect("something is done");
            assert!((left - (100.0 - elapsed)).abs() < 1e-6, "{done}: {left}");
        }
        assert_eq!(eta_seconds(0, 10, 5.0), None);
        assert_eq!(eta_seconds(10, 10, 5.0), Some(0.0));
        assert_eq!(eta_seconds(11, 10, 5.0), Some(0.0), "a file grew");
        assert_eq!(eta_seconds(0, 0, 0.0), Some(0.0));
    }

    #[test]
    fn a_phase_without_bytes_is_measured_in_files() {
        let phase = Phase { name: "checking", began: Instant::now(), bytes_total: None, files_total: Some(40) };
        let progress = phase.progress(0, 10, 5.0);
        assert_eq!(progress.eta_seconds, Some(15.0));
        let unknown = Phase { files_total: None, ..phase };
        assert_eq!(unknown.progress(5, 1, 5.0).eta_seconds, None);
    }

    #[test]
    fn the_sentence_names_amounts_rate_and_time_left() {
        let phase = Phase { name: "reading", began: Instant::now(), bytes_total: Some(4 << 20), files_total: Some(2) };
        let sentence = phase.progress(1 << 20, 1, 2.0).sentence();
        assert_eq!(sentence, "[======>                 ] 1.00 MiB of 4.00 MiB, 1 of 2 files, 512 KiB/s, 6 s left");
        assert_eq!(bar(5, 5), "=".repeat(24));
        assert_eq!(bar(0, 0), format!(">{}", " ".repeat(23)));
    }
}
