//! Ways to get the protocol wrong. The search finds what each of them breaks, or it would not find it in the protocol.

/// What an actor does otherwise than `docs/FORMAT.md` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Defect {
    /// The protocol as it is.
    None,
    /// The writer reads the lists, then announces itself.
    ListsReadBeforeTheAnnouncement,
    /// The writer takes packs of final lists that are still there for packs like others.
    EndedListsNotAbsent,
    /// The writer takes packs of lists without an end for packs like others.
    OpenListsNotAbsent,
    /// The writer counts a delta whose base lies in an absent pack.
    AbsentBasesCount,
    /// The writer does not look again at the packs that it relies on.
    ReliedPacksNotLookedAt,
    /// The writer does not list the packs of others that nobody has listed.
    AdoptedPacksNotListed,
    /// The writer lists its packs after it has committed.
    SnapshotBeforeItsIndex,
    /// The writer removes its announcement, then commits.
    WriterRemovesItsAnnouncementFirst,
    /// The writer takes an unclear answer for success.
    UnclearAnswerIsSuccess,
    /// The name of a pack follows from its content alone.
    PacksNamedByContent,
    /// The collector waits for nobody.
    TransactionsNotListed,
    /// The collector takes a silent writer for dead and does not write it down.
    RevokedOnTheQuiet,
    /// The collector writes REVOKED over a snapshot.
    RevocationOverwrites,
    /// The collector removes the announcement, then revokes.
    AnnouncementRemovedFirst,
    /// The collector never revokes.
    DeadWritersWaitedFor,
    /// What is condemned goes, whatever has become of it.
    SecondMarkIgnored,
    /// The collector keeps deltas without their bases.
    BasesNotKept,
    /// The collector that finds its number taken goes on with its own list.
    NumberTakenIgnored,
    /// The collector begins a number while the one before has no end.
    OpenNumberPassedOver,
    /// The collector that finds the end taken, perhaps by ABANDONED, deletes what it meant to.
    EndTakenIgnored,
    /// ABANDONED is taken for no end.
    AbandonedListsStayOpen,
    /// The collector deletes, then decides.
    DeletesBeforeTheEnd,
    /// A pack of an earlier final list that is still there counts as a home.
    EarlierListsCountAsHomes,
    /// A pack that the index lists counts as a home, there or not.
    ListedPacksNotLookedFor,
    /// The merged index leaves out the packs that were not found when the prune condemned.
    MergeDropsWhatIsNotFound,
    /// The merged index replaces objects that it has not read.
    MergeDeletesWhatItDidNotRead,
    /// The merged index is written after its inputs have gone.
    MergedIndexWrittenLast,
}

impl Defect {
    /// True if it harms nobody but those who wait.
    pub fn is_of_progress(self) -> bool {
        matches!(self, Defect::DeadWritersWaitedFor | Defect::AbandonedListsStayOpen)
    }

    /// All but the first.
    pub const PLANTED: [Defect; 27] = [
        Defect::ListsReadBeforeTheAnnouncement,
        Defect::EndedListsNotAbsent,
        Defect::OpenListsNotAbsent,
        Defect::AbsentBasesCount,
        Defect::ReliedPacksNotLookedAt,
        Defect::AdoptedPacksNotListed,
        Defect::SnapshotBeforeItsIndex,
        Defect::WriterRemovesItsAnnouncementFirst,
        Defect::UnclearAnswerIsSuccess,
        Defect::PacksNamedByContent,
        Defect::TransactionsNotListed,
        Defect::RevokedOnTheQuiet,
        Defect::RevocationOverwrites,
        Defect::AnnouncementRemovedFirst,
        Defect::DeadWritersWaitedFor,
        Defect::SecondMarkIgnored,
        Defect::BasesNotKept,
        Defect::NumberTakenIgnored,
        Defect::OpenNumberPassedOver,
        Defect::EndTakenIgnored,
        Defect::AbandonedListsStayOpen,
        Defect::DeletesBeforeTheEnd,
        Defect::EarlierListsCountAsHomes,
        Defect::ListedPacksNotLookedFor,
        Defect::MergeDropsWhatIsNotFound,
        Defect::MergeDeletesWhatItDidNotRead,
        Defect::MergedIndexWrittenLast,
    ];
}
