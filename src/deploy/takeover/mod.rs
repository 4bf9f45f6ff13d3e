//! Whether a stack may be brought up beside, or over, what is on the host already (spec section 4, step 3). Everything
//! is judged before anything changes.

mod claims;
mod findings;
mod folders;

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use self::findings::Finding;
use self::folders::Folder;
use super::{Driver, Plan, Resident, Stack, StepError};
use crate::command::Limit;
use crate::config::Catalog;
use crate::model::RepositoryRecord;

/// What is known when a stack is about to be brought up.
#[derive(Clone, Copy, Debug)]
pub struct Situation<'a> {
    /// The stack; `asked.adopt` goes on in spite of what is found.
    pub stack: &'a Stack,
    /// What Compose would run.
    pub plan: &'a Plan,
    /// All containers of this host.
    pub survey: &'a [Resident],
    /// The repository itself, with what it remembers of its earlier deployments.
    pub own: &'a RepositoryRecord,
    /// All repositories, orphans and the repository itself among them.
    pub records: &'a [RepositoryRecord],
    /// What is configured now.
    pub catalog: &'a Catalog,
    /// What `~` is in the compose files; none where Compose cannot tell.
    pub home: Option<&'a Path>,
}

/// That the stack may be brought up, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Judgement {
    /// Whether `--remove-orphans` removes nothing but containers that this repository made.
    pub remove_orphans: bool,
    /// Services whose containers come from another folder and are to be made anew from this one, even where nothing of
    /// them changed: their labels name the folder.
    pub recreate: BTreeSet<String>,
    /// What the deployment's log should say, one line each.
    pub notes: Vec<String>,
    /// What is accepted with this deployment, to be added to [`RepositoryRecord::accepted`] once its `up` begins.
    pub accepted: BTreeSet<String>,
}

/// Judges the stack, and asks Docker and Compose what is not known yet: mostly nothing.
///
/// # Errors
/// The stack is refused, in one line with what was found and what to write; or the answer cannot be had.
pub fn check(situation: &Situation<'_>, driver: &dyn Driver, limit: &Limit) -> Result<Judgement, StepError> {
    let volumes = driver.owners_of_volumes(&situation.unknown_volumes(), limit)?;
    let services = match situation.depends_on_all_services() {
        true => driver.services_of_all_profiles(situation.stack, situation.plan, limit)?,
        false => BTreeSet::new(),
    };
    judge(situation, &Answers { volumes, services })
}

/// What was asked beside the survey.
#[derive(Clone, Debug, Default)]
struct Answers {
    /// The volumes of [`Situation::unknown_volumes`] that exist, and the compose project that each was made for.
    volumes: BTreeMap<String, Option<String>>,
    /// Services of all profiles.
    services: BTreeSet<String>,
}

fn judge(situation: &Situation<'_>, answers: &Answers) -> Result<Judgement, StepError> {
    let here = Folder::new(&situation.stack.folder);
    let facts = Facts { situation, answers, here: &here };
    let is_new = |finding: &Finding| !finding.keys.is_subset(&situation.own.accepted);
    let refuse = |finding: &Finding| match situation.stack.asked.adopt {
        true => Ok(()),
        false => Err(finding.refusal()),
    };
    let renamed = findings::renamed_repository(&facts).filter(is_new);
    renamed.iter().try_for_each(refuse)?;
    // Nobody may accept this one: the containers of another repository would be removed.
    claims::refuse_taken(situation, &here)?;
    let findings: Vec<Finding> =
        renamed.into_iter().chain(findings::overridable(&facts).into_iter().filter(is_new)).collect();
    findings.iter().try_for_each(refuse)?;
    let (remove_orphans, orphan_notes) = findings::orphans(&facts);
    findings::refuse_taken_names(&facts, remove_orphans)?;
    let mut notes: Vec<String> = findings.iter().map(|finding| format!("adopted: {}", finding.what)).collect();
    notes.extend(orphan_notes);
    notes.extend(findings::other_notes(&facts));
    Ok(Judgement {
        remove_orphans,
        recreate: facts.services_from_elsewhere(),
        notes,
        accepted: findings.into_iter().flat_map(|finding| finding.keys).collect(),
    })
}

impl Situation<'_> {
    /// The volumes whose owner matters and is not known: those that this repository has not brought up before, and all
    /// of them when its compose project has changed.
    fn unknown_volumes(&self) -> BTreeSet<String> {
        match self.earlier_project() {
            Some(_) => self.plan.volumes.union(&self.own.brought_up_volumes).cloned().collect(),
            None => self.plan.volumes.difference(&self.own.brought_up_volumes).cloned().collect(),
        }
    }

    /// Whether it matters which services the inactive profiles have.
    fn depends_on_all_services(&self) -> bool {
        let mut inactive = self.of_this_project().filter(|resident| !self.is_active(resident)).peekable();
        let ended_one_off = || self.of_this_project().any(|resident| resident.is_one_off && resident.has_ended);
        inactive.peek().is_some() && (inactive.any(|resident| !self.is_remembered(resident)) || ended_one_off())
    }

    /// The compose project that this repository had before, where it is another one.
    fn earlier_project(&self) -> Option<&str> {
        self.own.compose_project.as_deref().filter(|project| *project != self.plan.project)
    }

    fn of_this_project(&self) -> impl Iterator<Item = &Resident> {
        self.survey.iter().filter(|resident| resident.project.as_ref() == Some(&self.plan.project))
    }

    fn is_active(&self, resident: &Resident) -> bool {
        resident.service.as_ref().is_some_and(|service| self.plan.services.contains_key(service))
    }

    /// Whether an earlier deployment of this repository made such a container in this project.
    fn is_remembered(&self, resident: &Resident) -> bool {
        self.own.compose_project.as_ref() == Some(&self.plan.project)
            && !resident.is_one_off
            && resident.service.as_ref().is_some_and(|service| self.own.brought_up_services.contains(service))
    }
}

/// A situation with what was asked about it.
struct Facts<'a> {
    situation: &'a Situation<'a>,
    answers: &'a Answers,
    here: &'a Folder,
}

impl Facts<'_> {
    /// Whether the compose files have the container's service, in whichever profile.
    fn is_known_service(&self, resident: &Resident) -> bool {
        self.situation.is_active(resident)
            || resident.service.as_ref().is_some_and(|service| self.answers.services.contains(service))
    }

    fn is_from_here(&self, resident: &Resident) -> bool {
        resident.folder.as_deref().is_some_and(|folder| self.here.is(folder))
    }

    fn services_from_elsewhere(&self) -> BTreeSet<String> {
        let from_elsewhere = |resident: &&Resident| {
            !resident.is_one_off && self.situation.is_active(resident) && !self.is_from_here(resident)
        };
        self.situation
            .of_this_project()
            .filter(from_elsewhere)
            .filter_map(|resident| resident.service.clone())
            .collect()
    }
}

#[cfg(test)]
pub(super) mod tests;
