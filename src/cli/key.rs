//! `ckpt key`: add, list, renew and remove the keys of an encrypted repository.

use super::context::Context;
use super::exit::Ending;
use super::json::{Body, KeyDocument, KeyListDocument, KeyRotateDocument, KeySlotItem, standing_name};
use super::render::{self, Side, Table};
use super::secrets::{CostArguments, NewKeyArguments};
use ckpt::bytes::{ByteCount, KIB};
use ckpt::error::{Error, Kind, Result};
use ckpt::ops::keys::{self, Admin, NewSecret, SlotReport, Standing};
use ckpt::repo::audit::Actor;
use ckpt::repo::keys::Role;

/// Options of `key`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  ckpt key list
  ckpt key add --role put --label host7 --generate /root/host7.key
  ckpt key add --role read --label 'the safe' --new-key-file /media/usb/read.key
  ckpt key remove 3f9a && ckpt key rotate
  ckpt key passphrase

Roles: put adds snapshots and reads nothing back; read looks, restores and verifies; prune adds and frees space, and \
reads lists of files, not contents; admin does everything. All but `list` needs an admin key in --key-file, \
CKPT_KEY_FILE, --key-command, CKPT_KEY_COMMAND or at the prompt.

A key that is removed opens nothing from then on, but its holder may have kept what it opened: `ckpt key rotate` \
seals all that is written afterwards to new keys.")]
pub struct Arguments {
    #[command(subcommand)]
    action: Action,
}

/// What to do with the keys.
#[derive(Debug, clap::Subcommand)]
enum Action {
    /// List the key slots
    List,
    /// Add a key
    Add(AddArguments),
    /// Remove a key: it opens nothing any more
    Remove(RemoveArguments),
    /// Seal all that is written from now on to new keys, which every key that is left gets
    Rotate,
    /// Change the secret of the key in use
    Passphrase(PassphraseArguments),
}

/// Options of `key add`.
#[derive(Debug, clap::Args)]
struct AddArguments {
    /// What the key is to allow
    #[arg(long, value_name = "ROLE", value_parser = ["put", "read", "prune", "admin"])]
    role: String,

    /// What it is called: whose it is, where it is kept
    #[arg(long, value_name = "TEXT", default_value = "")]
    label: String,

    #[command(flatten)]
    new_key: NewKeyArguments,

    #[command(flatten)]
    cost: CostArguments,
}

/// Options of `key remove`.
#[derive(Debug, clap::Args)]
struct RemoveArguments {
    /// The first digits of the slot's id, at least four
    #[arg(value_name = "ID")]
    id: String,
}

/// Options of `key passphrase`.
#[derive(Debug, clap::Args)]
struct PassphraseArguments {
    #[command(flatten)]
    new_key: NewKeyArguments,

    #[command(flatten)]
    cost: CostArguments,
}

/// Does what was asked for.
pub fn run(context: &Context, arguments: &Arguments) -> Result<Ending> {
    let repo = context.open()?;
    if let Action::List = arguments.action {
        return list(context, keys::list(&repo)?);
    }
    let admin = Admin::of(&repo, Actor::of_this_process(), context.started())?;
    match &arguments.action {
        Action::List => Ok(Ending::Done),
        Action::Add(add) => {
            let cost = add.cost.cost()?;
            let role = Role::from_name(&add.role).ok_or_else(|| Error::new(Kind::Usage, "no such role"))?;
            let secret = add.new_key.read(&context.output)?;
            let new = NewSecret { secret: &secret, cost, now: context.started() };
            conclude(context, "added", &admin.add(role, &add.label, new)?)
        }
        Action::Passphrase(change) => {
            let cost = change.cost.cost()?;
            let secret = change.new_key.read(&context.output)?;
            let new = NewSecret { secret: &secret, cost, now: context.started() };
            conclude(context, "changed", &admin.change_secret(new)?)
        }
        Action::Remove(remove) => {
            let ending = conclude(context, "removed", &admin.remove(&remove.id)?)?;
            if context.output.manners.is_watched() {
                let text = "`ckpt key rotate` seals what is written from now on to keys that it has never seen";
                context.output.talk("info", text);
            }
            Ok(ending)
        }
        Action::Rotate => rotate(context, &admin),
    }
}

fn conclude(context: &Context, action: &str, slot: &SlotReport) -> Result<Ending> {
    let output = &context.output;
    if output.manners.json {
        let document = KeyDocument { action: action.to_owned(), slot: KeySlotItem::new(slot) };
        output.closing(output.document(Body::Key(document)))?;
    } else if output.manners.is_talkative() {
        let label = if slot.label.is_empty() { String::new() } else { format!(", {}", render::prose(&slot.label)) };
        output.closing(output.line(&format!("{action}: slot {}, {}{label}", slot.id, slot.role.name())))?;
    }
    Ok(Ending::Done)
}

fn list(context: &Context, report: keys::ListReport) -> Result<Ending> {
    if context.output.manners.json {
        let slots = report.slots.iter().map(KeySlotItem::new).collect();
        let damaged = u64::try_from(report.damage.len()).unwrap_or(u64::MAX);
        context.output.document(Body::KeyList(KeyListDocument { slots, damaged }))?;
        return Ok(Ending::Done);
    }
    let columns = ["ID", "ROLE", "CREATED", "ARGON2ID", "GENERATION", "", "LABEL"];
    let mut table = Table::new(&columns.map(|name| (name, Side::Left)));
    for slot in &report.slots {
        let cost = slot.cost;
        let in_use = if slot.is_in_use { "in use" } else { "" };
        // What is as it should be needs no word.
        let standing = slot.standing.filter(|standing| *standing != Standing::Current).map_or("", standing_name);
        let between = if in_use.is_empty() || standing.is_empty() { "" } else { ", " };
        table.row(vec![
            slot.id.short(),
            slot.role.name().to_owned(),
            context.time(slot.created),
            format!("{} x {}", ByteCount(u64::from(cost.memory_kib) * KIB), cost.passes),
            slot.generation.to_string(),
            format!("{in_use}{between}{standing}"),
            render::prose(&slot.label),
        ]);
    }
    table.lines().iter().try_for_each(|line| context.output.line(line))?;
    if report.slots.iter().any(|slot| slot.standing == Some(Standing::Behind)) {
        context.output.warning("a rotation of keys was not finished: run `ckpt key rotate` again");
    }
    Ok(Ending::Done)
}

fn rotate(context: &Context, admin: &Admin<'_>) -> Result<Ending> {
    let report = admin.rotate()?;
    let output = &context.output;
    let items = |slots: &[SlotReport]| slots.iter().map(KeySlotItem::new).collect();
    if output.manners.json {
        let (renewed, foreign) = (items(&report.renewed), items(&report.foreign));
        let document = KeyRotateDocument { generation: report.generation, renewed, foreign };
        output.closing(output.document(Body::KeyRotate(document)))?;
    } else if output.manners.is_talkative() {
        let slots = render::counted(u64::try_from(report.renewed.len()).unwrap_or(u64::MAX), "slot has", "slots have");
        output.closing(output.line(&format!("key generation {}: {slots} it", report.generation)))?;
        for slot in &report.renewed {
            let line = format!("  {} {} {}", slot.id.short(), slot.role.name(), render::prose(&slot.label));
            output.closing(output.line(line.trim_end()))?;
        }
    }
    if report.foreign.is_empty() {
        return Ok(Ending::Done);
    }
    for slot in &report.foreign {
        output.warning(&format!(
            "slot {} ({}, {:?}) was not renewed: no admin with the newest keys made it",
            slot.id,
            slot.role.name(),
            slot.label
        ));
    }
    let hint = "if you know it, remove it and add that key again, or rotate with the admin key that made it; \
                otherwise somebody has planted it: remove it";
    Ok(Ending::Partial("the new keys were not given to every slot".to_owned(), hint))
}
