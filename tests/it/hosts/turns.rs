//! Lets one host at a time take steps on a simulated storage, in an order that follows from a seed.
//!
//! Every host is a thread. It goes on while it has the turn, which lasts some steps and then goes to another, now and
//! then past hosts that sleep for long. What a host does between two steps it may do at any time; it shares nothing
//! there. Within a host, threads of its own may meet in any order: a seed names the choices, not every step.

use crate::support::Chance;
use ckpt::storage::simulated::{Call, SimulatedStorage};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// How many steps a turn lasts.
const TURNS: [u64; 8] = [1, 1, 2, 3, 7, 20, 60, 200];
/// How many steps of others a host sleeps.
const SLEEPS: [u64; 4] = [50, 200, 600, 1500];

/// Who may go on.
pub struct Turns {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    chance: Chance,
    seats: Vec<Seat>,
    holder: usize,
    steps_left: u64,
    steps: u64,
    /// After so many steps in all, everything loses power.
    cut_at: Option<u64>,
    is_cut: bool,
}

struct Seat {
    /// The process that the host runs now.
    process: Option<SimulatedStorage>,
    is_at_work: bool,
    sleeps_until: u64,
}

impl Turns {
    /// All of `hosts` are at work from now.
    pub fn new(seed: u64, hosts: usize, cut_at: Option<u64>) -> Turns {
        let seats = (0..hosts).map(|_| Seat { process: None, is_at_work: true, sleeps_until: 0 }).collect();
        let (chance, holder, steps_left, steps) = (Chance(seed), 0, 1, 0);
        let state = State { chance, seats, holder, steps_left, steps, cut_at, is_cut: false };
        Turns { state: Mutex::new(state), changed: Condvar::new() }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until it is the host's turn.
    pub fn wait(&self, host: usize) {
        let mut state = self.lock();
        while state.holder != host {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The host, whose turn it is, begins a process; true if there is still power.
    pub fn begin(&self, host: usize, process: &SimulatedStorage) -> bool {
        let mut state = self.lock();
        state.seats[host].process = Some(process.clone());
        !state.is_cut
    }

    /// The host's process has ended.
    pub fn end(&self, host: usize) {
        self.lock().seats[host].process = None;
    }

    /// The host takes part no longer.
    pub fn leave(&self, host: usize) {
        let mut state = self.lock();
        state.seats[host].is_at_work = false;
        state.seats[host].process = None;
        if state.holder == host {
            state.pass_on();
            self.changed.notify_all();
        }
    }

    /// Before each step of any process.
    pub fn gate(&self, call: &Call) {
        let mut state = self.lock();
        let is_process = |seat: &Seat| seat.process.as_ref().is_some_and(|process| process.host() == call.host);
        // Those who only look take no part.
        let Some(host) = state.seats.iter().position(is_process) else { return };
        loop {
            if state.holder != host {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            }
            if state.steps_left > 0 {
                break;
            }
            state.pass_on();
            self.changed.notify_all();
        }
        state.steps_left -= 1;
        state.steps += 1;
        if state.cut_at.is_some_and(|at| state.steps > at) && !state.is_cut {
            state.is_cut = true;
            let processes: Vec<_> = state.seats.iter().filter_map(|seat| seat.process.clone()).collect();
            processes.iter().for_each(|process| process.crash_at(process.steps()));
        }
    }

    /// How many steps there were.
    pub fn steps(&self) -> u64 {
        self.lock().steps
    }

    pub fn is_cut(&self) -> bool {
        self.lock().is_cut
    }
}

impl State {
    /// Chooses who goes on, and for how long; the host that had the turn may fall asleep.
    fn pass_on(&mut self) {
        if self.chance.below(12) == 0 {
            self.seats[self.holder].sleeps_until = self.steps + SLEEPS[self.chance.index(SLEEPS.len())];
        }
        let at_work: Vec<usize> = (0..self.seats.len()).filter(|&host| self.seats[host].is_at_work).collect();
        let awake: Vec<usize> =
            at_work.iter().copied().filter(|&host| self.seats[host].sleeps_until <= self.steps).collect();
        let first_to_wake = at_work.iter().copied().min_by_key(|&host| self.seats[host].sleeps_until);
        self.holder = match awake.is_empty() {
            true => first_to_wake.unwrap_or(self.holder),
            false => awake[self.chance.index(awake.len())],
        };
        self.steps_left = TURNS[self.chance.index(TURNS.len())];
    }
}
