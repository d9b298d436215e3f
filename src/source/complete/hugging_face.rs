//! The Trainer of Hugging Face: weights, then optimizer and random states, and `trainer_state.json` after them.

use super::Tally;
use super::folder::{Folder, Verdict, name_of, read_json};
use super::names;
use serde::Deserialize;

const STATE: &[u8] = b"trainer_state.json";
/// What only a run that is to be continued writes beside the weights.
const OF_TRAINING: [&[u8]; 6] =
    [b"training_args.bin", b"optimizer.pt", b"optimizer.bin", b"scheduler.pt", b"scheduler.bin", b"scaler.pt"];
/// Weights in forms that nothing is told about here.
const OTHER_WEIGHTS: [&[u8]; 4] = [b".msgpack", b".h5", b".gguf", b".npz"];

#[derive(Deserialize)]
struct State {
    global_step: Option<u64>,
}

/// True for a directory that the Trainer has begun.
pub(super) fn is_trainer(folder: &Folder) -> bool {
    folder.has(STATE) || folder.has(b"training_args.bin")
}

/// Weights are there, and the state that is written after them.
pub(super) fn check(folder: &Folder, tally: &mut Tally) -> Verdict {
    let is_state_of_run = |name: &[u8]| OF_TRAINING.contains(&name) || name.starts_with(b"rng_state");
    let is_of_training = folder.files.iter().map(name_of).any(is_state_of_run);
    // Accelerate, which has no state file, writes the random states last.
    let is_accelerate = folder.files.iter().any(|file| name_of(file).starts_with(b"random_states_"));
    if let Some(state) = folder.file(STATE) {
        tally.step = read_json::<State>(state, tally)?.and_then(|state| state.global_step);
    } else if is_of_training && !is_accelerate && !folder.has(STATE) {
        return Err("trainer_state.json is not there".to_owned());
    }
    let is_weights = |name: &[u8]| {
        (names::is_weights(name) && !is_state_of_run(name)) || OTHER_WEIGHTS.iter().any(|end| name.ends_with(end))
    };
    let has_others = folder.all().iter().any(|below| below.others.iter().any(|name| is_weights(name)));
    if has_others || folder.any_file(is_weights) { Ok(()) } else { Err("no file of weights is there".to_owned()) }
}
