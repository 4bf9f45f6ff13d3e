//! What can stand in a stack's way on a host, each with its words.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use super::folders::Folder;
use super::{Facts, Situation, claims};
use crate::deploy::{Resident, StepError};

/// How many things of a kind a message names.
const MAX_NAMED: usize = 3;
/// How much of an id a message shows, as Docker does.
const SHORT_ID_DIGITS: usize = 12;
/// The longest text of somebody else's that a message repeats, in characters.
const MAX_SHOWN_CHARS: usize = 200;

/// Something that refuses a deployment unless somebody accepts it.
pub struct Finding {
    /// What is remembered once it is accepted. With all of them accepted it is none any more.
    pub keys: BTreeSet<String>,
    /// What was found.
    pub what: String,
    /// What to write or to do, `--adopt` included.
    pub way_out: String,
}

impl Finding {
    /// In one line.
    pub fn refusal(&self) -> StepError {
        StepError::for_good(format!("{}: {}", self.what, self.way_out))
    }
}

/// All that somebody may accept, what explains the rest first.
pub fn overridable(facts: &Facts<'_>) -> Vec<Finding> {
    let changed = changed_project(facts);
    let told = changed.is_some();
    let one_each = [
        changed,
        other_projects(facts, told),
        other_folders(facts),
        further_files(facts),
        strangers(facts),
        other_home(facts),
    ];
    one_each.into_iter().flatten().chain(volumes_of_others(facts)).collect()
}

/// This very stack under an earlier key of the configuration, in another folder: what runs there would go on beside,
/// with the data.
pub fn renamed_repository(facts: &Facts<'_>) -> Option<Finding> {
    let (own, records) = (facts.situation.own, facts.situation.records);
    if own.compose_project.is_some() {
        return None;
    }
    let is_the_same = |record: &&crate::model::RepositoryRecord| {
        record.orphaned_at.is_some()
            && (&record.git_url, &record.branch, &record.path) == (&own.git_url, &own.branch, &own.path)
    };
    records.iter().filter(is_the_same).find_map(|earlier| {
        let (project, folder) = (earlier.compose_project.as_ref()?, Path::new(earlier.up_folder.as_ref()?));
        let there = Folder::new(folder);
        if facts.here.is(folder) {
            return None;
        }
        let is_there = |resident: &&Resident| resident.folder.as_deref().is_some_and(|folder| there.is(folder));
        let containers: Vec<_> = lasting_of(facts, project).into_iter().filter(is_there).collect();
        let lines = match *project == facts.situation.plan.project {
            true => format!("`local_path: {}`", earlier.local_path),
            false => format!("`local_path: {}` and `compose_project: {project}`", earlier.local_path),
        };
        (!containers.is_empty()).then(|| Finding {
            keys: BTreeSet::from([format!("earlier:{}", earlier.name)]),
            what: format!(
                "{}, which no project file names any more, has the same `url`, `branch` and `path`, and its containers are there \
                 ({})",
                earlier.name,
                names(&containers)
            ),
            way_out: format!(
                "write {lines} for {} to go on with them, or start a second stack beside them with {}",
                own.name,
                adopt(facts)
            ),
        })
    })
}

/// Containers and volumes of the compose project that this repository had before.
fn changed_project(facts: &Facts<'_>) -> Option<Finding> {
    let (situation, name) = (facts.situation, &facts.situation.own.name);
    let old = situation.earlier_project()?;
    let up_folder = situation.own.up_folder.as_deref().map(|folder| Folder::new(Path::new(folder)));
    let is_ours = |resident: &&Resident| {
        resident.folder.as_deref().is_none_or(|folder| {
            facts.here.is(folder) || up_folder.as_ref().is_some_and(|up_folder| up_folder.is(folder))
        })
    };
    let containers: Vec<_> = lasting_of(facts, old).into_iter().filter(is_ours).collect();
    let is_of_old = |(_, owner): &(&String, &Option<String>)| owner.as_deref() == Some(old);
    let volumes: Vec<_> = facts.answers.volumes.iter().filter(is_of_old).map(|(volume, _)| volume.clone()).collect();
    let left: Vec<_> = [("containers", names(&containers)), ("volumes", several(&volumes))]
        .into_iter()
        .filter(|(_, names)| !names.is_empty())
        .map(|(what, names)| format!("{what} {names}"))
        .collect();
    // Volumes stay when containers are taken down.
    let down = match containers.is_empty() {
        true => String::new(),
        false => format!("remove its containers by hand (`docker compose -p {old} down`), "),
    };
    (!left.is_empty()).then(|| Finding {
        keys: beside(old),
        what: format!(
            "the compose project of {name} would change from `{old}` to `{}`, and what it has under the old name would stay beside it, \
             with its data ({})",
            situation.plan.project,
            left.join("; ")
        ),
        way_out: format!(
            "write `compose_project: {old}` for {name}, {down}or leave it there with {}",
            adopt(facts)
        ),
    })
}

/// Containers that were brought up from this folder under another name.
fn other_projects(facts: &Facts<'_>, change_is_told: bool) -> Option<Finding> {
    let situation = facts.situation;
    let (plan, own) = (situation.plan, situation.own);
    let told = situation.earlier_project().filter(|_| change_is_told);
    let mut found: BTreeMap<&str, Vec<&Resident>> = BTreeMap::new();
    for resident in situation.survey.iter().filter(|resident| !resident.is_one_off) {
        let Some(project) = resident.project.as_deref() else { continue };
        if project != plan.project && Some(project) != told && facts.is_from_here(resident) {
            found.entry(project).or_default().push(resident);
        }
    }
    let keys: BTreeSet<String> = found.keys().flat_map(|project| beside(project)).collect();
    found.retain(|project, _| !beside(project).is_subset(&situation.own.accepted));
    let (first, _) = found.first_key_value()?;
    let way_out = match own.compose_project.as_ref() == Some(&plan.project) {
        // What this repository deployed is its stack; the other one is a copy.
        true => format!(
            "remove them if they are not wanted (`docker compose -p {first} down`), or leave them there with {}",
            adopt(facts)
        ),
        false => format!(
            "write `compose_project: {first}` for {}, so that they and their volumes are kept, or start `{}` beside them with {}",
            own.name,
            plan.project,
            adopt(facts)
        ),
    };
    let each: Vec<_> =
        found.iter().map(|(project, containers)| format!("`{}` ({})", shown(project), names(containers))).collect();
    let what =
        format!("containers of {} belong to compose project {}", situation.stack.folder.display(), several(&each));
    Some(Finding { keys, what, way_out })
}

/// Containers of this compose project that were brought up from another folder.
fn other_folders(facts: &Facts<'_>) -> Option<Finding> {
    let situation = facts.situation;
    let (plan, own) = (situation.plan, situation.own);
    let all = lasting_of(facts, &plan.project);
    let (from_here, mut foreign): (Vec<&Resident>, Vec<&Resident>) =
        all.into_iter().partition(|resident| facts.is_from_here(resident));
    let key = |resident: &Resident| format!("folder:{}:{}", plan.project, folder_of(resident));
    foreign.retain(|resident| !situation.own.accepted.contains(&key(resident)));
    let keys: BTreeSet<String> = foreign.iter().map(|resident| key(resident)).collect();
    let folders: BTreeSet<String> = foreign.iter().map(|resident| folder_of(resident)).collect();
    if foreign.is_empty() {
        return None;
    }
    let earlier_folder = own.up_folder.as_deref().filter(|_| own.compose_project.as_ref() == Some(&plan.project));
    let earlier = earlier_folder.map(|folder| Folder::new(Path::new(folder)));
    let is_earlier = |resident: &&Resident| {
        resident.folder.as_deref().zip(earlier.as_ref()).is_some_and(|(folder, earlier)| earlier.is(folder))
    };
    let folders = several(&folders.into_iter().collect::<Vec<_>>());
    if foreign.iter().all(is_earlier) {
        return Some(Finding {
            keys,
            what: format!(
                "the containers of compose project `{}` ({}) come from {folders}, where this stack was before",
                plan.project,
                names(&foreign)
            ),
            way_out: format!(
                "put `path` and `local_path` back, or move the data and have them made anew from {} with {}: relative bind mounts then \
                 lead there",
                situation.stack.folder.display(),
                adopt(facts)
            ),
        });
    }
    let what = format!("containers of compose project `{}` ({}) belong to {folders}", plan.project, names(&foreign));
    let way_out = if from_here.is_empty() {
        format!(
            "write `compose_project: {}` for {}, or, if it is this very stack, have them made anew from {} with {}",
            claims::free_project(situation),
            own.name,
            situation.stack.folder.display(),
            adopt(facts)
        )
    } else {
        shared_way_out(facts, &from_here, &foreign)
    };
    Some(Finding { keys, what, way_out })
}

/// Two stacks are in one compose project already: which of them may have another name is not for us to say.
fn shared_way_out(facts: &Facts<'_>, from_here: &[&Resident], foreign: &[&Resident]) -> String {
    let plan = facts.situation.plan;
    let both: BTreeSet<&str> = foreign
        .iter()
        .filter(|resident| facts.situation.is_active(resident))
        .filter_map(|resident| resident.service.as_deref())
        .collect();
    let (adopt, here) = (adopt(facts), names(from_here));
    match both.is_empty() {
        true => format!(
            "so does what runs of this stack ({here}); bring the other one up under a name of its own, or go on beside it with {adopt}: \
             its containers are left alone"
        ),
        false => format!(
            "so does what runs of this stack ({here}), and both have the services {}; bring the other one up under a name other than \
             `{}`, or have these services made anew from this folder with {adopt}",
            several(&both.into_iter().map(str::to_owned).collect::<Vec<_>>()),
            plan.project
        ),
    }
}

/// Containers that somebody started with these files and others on top (`docker compose -f … -f …`): without them the
/// services would lose what those say.
fn further_files(facts: &Facts<'_>) -> Option<Finding> {
    let Situation { plan, own, stack, .. } = facts.situation;
    if own.compose_project.is_some() {
        return None;
    }
    let is_among = |files: &[PathBuf], file: &Path| {
        files
            .iter()
            .any(|other| other == file || file.canonicalize().is_ok_and(|real| other.canonicalize().ok() == Some(real)))
    };
    let from_here = lasting_of(facts, &plan.project).into_iter().filter(|resident| facts.is_from_here(resident));
    from_here.into_iter().find_map(|resident| {
        let further: Vec<_> =
            resident.files.iter().filter(|file| file.is_file() && !is_among(&plan.files, file)).collect();
        let has_ours = plan.files.iter().all(|file| is_among(&resident.files, file));
        if further.is_empty() || !has_ours {
            return None;
        }
        let named = |file: &PathBuf| shown(&file.strip_prefix(&stack.folder).unwrap_or(file).to_string_lossy());
        Some(Finding {
            keys: BTreeSet::from([format!("files:{}", plan.project)]),
            what: format!(
                "containers of compose project `{}` ({}) were started with {} too",
                plan.project,
                resident.name,
                several(&further.into_iter().map(named).collect::<Vec<_>>())
            ),
            way_out: format!(
                "write `compose_files: [{}]` for {}, or go on without with {}",
                resident.files.iter().map(named).collect::<Vec<_>>().join(", "),
                own.name,
                adopt(facts)
            ),
        })
    })
}

/// Containers of this stack that `--remove-orphans` would remove, and that no deployment of this repository made.
fn strangers(facts: &Facts<'_>) -> Option<Finding> {
    let situation = facts.situation;
    let key = |resident: &Resident| {
        let service = resident.service.as_deref().unwrap_or(&resident.name);
        format!("orphan:{}:{service}", situation.plan.project)
    };
    let mut found = foreign_orphans(facts);
    // Those of other folders are refused as such.
    found.retain(|resident| facts.is_from_here(resident) && !situation.own.accepted.contains(&key(resident)));
    (!found.is_empty()).then(|| Finding {
        keys: found.iter().map(|resident| key(resident)).collect(),
        what: format!(
            "the compose files have no service for containers that no deployment of {} made and `--remove-orphans` would remove ({})",
            situation.own.name,
            names(&found)
        ),
        way_out: format!(
            "write their services into the compose files, remove them by hand (`docker rm -f {}`), or leave them there with {}",
            found[0].name,
            adopt(facts)
        ),
    })
}

/// A container that was started by somebody with another home folder: `~` and `${HOME}` would lead it to other data.
fn other_home(facts: &Facts<'_>) -> Option<Finding> {
    let Situation { plan, home: Some(home), own, .. } = facts.situation else { return None };
    if own.compose_project.is_some() {
        return None;
    }
    let residents = lasting_of(facts, &plan.project);
    plan.mounts.iter().find_map(|mount| {
        let below_home = mount.source.strip_prefix(home).ok().filter(|rest| !rest.as_os_str().is_empty())?;
        let is_its_own = |source: &Path| {
            plan.mounts.iter().any(|other| other.service == mount.service && other.source == *source)
        };
        let of_service = residents.iter().filter(|resident| resident.service.as_ref() == Some(&mount.service));
        let mut others = of_service
            .filter(|resident| !resident.mounts.contains(&mount.source))
            .flat_map(|resident| &resident.mounts)
            .filter(|source| source.is_absolute() && !is_its_own(source));
        let (theirs, their_home) = others.find_map(|source| {
            let levels = below_home.components().count();
            Some((source, source.ancestors().nth(levels).filter(|_| source.ends_with(below_home))?))
        })?;
        Some(Finding {
            keys: BTreeSet::from([format!("home:{}", plan.project)]),
            what: format!(
                "service {} mounts {}, and would mount {}: who started it has another home folder",
                mount.service,
                shown(&theirs.to_string_lossy()),
                mount.source.display()
            ),
            way_out: format!(
                "write `environment: {{HOME: {}}}` for {}, or whole paths into the compose files, or have it so with {}",
                shown(&their_home.to_string_lossy()),
                own.name,
                adopt(facts)
            ),
        })
    })
}

/// Volumes of the names that the stack uses, made for other projects.
fn volumes_of_others<'a>(facts: &'a Facts<'_>) -> impl Iterator<Item = Finding> + 'a {
    let situation = facts.situation;
    let plan = situation.plan;
    let used = facts.answers.volumes.iter().filter(|(volume, _)| plan.volumes.contains(*volume));
    let owned = used.filter_map(|(volume, owner)| Some((volume, owner.as_deref()?)));
    // Those of an earlier name of this repository are told with the change.
    let foreign = owned
        .filter(move |(_, owner)| *owner != plan.project && situation.own.compose_project.as_deref() != Some(owner));
    foreign.map(move |(volume, owner)| Finding {
        keys: BTreeSet::from([format!("volume:{volume}:{owner}")]),
        what: format!("volume {volume} was made for compose project `{}`", shown(owner)),
        way_out: format!(
            "write `compose_project: {owner}` for {} if it is the same stack, `external: true` for the volume if both are to use it, another \
             `name:` if not, or use it all the same with {}",
            situation.own.name,
            adopt(facts)
        ),
    })
}

/// Refuses a `container_name` that a container has which this `up` neither replaces nor removes. Nobody can accept
/// that: Docker gives a name once.
pub fn refuse_taken_names(facts: &Facts<'_>, remove_orphans: bool) -> Result<(), StepError> {
    let plan = facts.situation.plan;
    let is_wanted = |service: &str| plan.services.get(service).is_some_and(|count| *count > 0);
    let gives_way = |resident: &Resident| {
        resident.project.as_ref() == Some(&plan.project)
            && !resident.is_one_off
            && (facts.situation.is_active(resident) || remove_orphans && !facts.is_known_service(resident))
    };
    for (service, wanted) in plan.container_names.iter().filter(|(service, _)| is_wanted(service)) {
        let Some(holder) = facts.situation.survey.iter().find(|resident| resident.name == *wanted) else { continue };
        if gives_way(holder) {
            continue;
        }
        let whose = match &holder.project {
            Some(project) => format!("of compose project `{}` in {}", shown(project), folder_of(holder)),
            None => "of no compose project".to_owned(),
        };
        // By then somebody may have removed it.
        return Err(StepError::for_now(format!(
            "`container_name: {wanted}` of service {service} is the name of a container {whose} ({}): rename or remove that one (`docker rename \
             {wanted} …`), or write another `container_name`",
            short(&holder.id)
        )));
    }
    Ok(())
}

/// Whether `--remove-orphans` would remove nothing but what this repository made, and, where it would, what is said of
/// that.
pub fn orphans(facts: &Facts<'_>) -> (bool, Vec<String>) {
    let foreign = foreign_orphans(facts);
    let one_offs: Vec<_> = facts
        .situation
        .of_this_project()
        .filter(|resident| resident.is_one_off && (resident.has_ended || !facts.is_known_service(resident)))
        .collect();
    let own: Vec<_> = facts
        .situation
        .of_this_project()
        .filter(|resident| facts.situation.is_remembered(resident) && !facts.is_known_service(resident))
        .collect();
    let mut because = Vec::new();
    if !foreign.is_empty() {
        because.push(format!("no deployment of {} made {}", facts.situation.own.name, names(&foreign)));
    }
    if !one_offs.is_empty() {
        because.push(format!("{} of `docker compose run` would go with it", names(&one_offs)));
    }
    if because.is_empty() {
        return (true, Vec::new());
    }
    let mut notes = vec![format!("without --remove-orphans: {}", because.join(", and "))];
    if !own.is_empty() {
        notes.push(format!(
            "the compose files have no service for {} any more, and they stay because of that: remove them by hand",
            names(&own)
        ));
    }
    (false, notes)
}

/// What is worth a line, and no reason to refuse.
pub fn other_notes(facts: &Facts<'_>) -> Vec<String> {
    let situation = facts.situation;
    let unlabelled: Vec<_> = facts
        .answers
        .volumes
        .iter()
        .filter(|(volume, owner)| owner.is_none() && situation.plan.volumes.contains(*volume))
        .map(|(volume, _)| volume.clone())
        .collect();
    let mut notes = Vec::new();
    if !unlabelled.is_empty() {
        notes.push(format!("not made by Compose, and used: volume {}", several(&unlabelled)));
    }
    if situation.own.compose_project.is_none() {
        notes.extend(situation.plan.services.iter().filter_map(|(service, count)| surplus(facts, service, *count)));
    }
    notes
}

/// A service of which more containers were started by hand than the compose files say.
fn surplus(facts: &Facts<'_>, service: &str, count: u32) -> Option<String> {
    let is_of_service = |resident: &&&Resident| resident.service.as_deref() == Some(service);
    let there = lasting_of(facts, &facts.situation.plan.project).iter().filter(is_of_service).count();
    (there > usize::try_from(count).ok()?).then(|| {
        format!("service {service} has {there} containers and the compose files say {count}: the others are removed")
    })
}

/// Containers that `--remove-orphans` would remove, those of `docker compose run` aside, and that this repository did
/// not make. Services of inactive profiles have none of them, in any version of Compose.
fn foreign_orphans<'a>(facts: &Facts<'a>) -> Vec<&'a Resident> {
    let situation = facts.situation;
    let is_foreign = |resident: &&Resident| {
        !resident.is_one_off && !facts.is_known_service(resident) && !situation.is_remembered(resident)
    };
    situation.of_this_project().filter(is_foreign).collect()
}

/// The containers of a compose project, without those of `docker compose run`.
fn lasting_of<'a>(facts: &Facts<'a>, project: &str) -> Vec<&'a Resident> {
    let all = facts.situation.survey.iter();
    all.filter(|resident| resident.project.as_deref() == Some(project) && !resident.is_one_off).collect()
}

/// That another compose project stays beside this one.
fn beside(project: &str) -> BTreeSet<String> {
    BTreeSet::from([format!("beside:{project}")])
}

fn adopt(facts: &Facts<'_>) -> String {
    format!("`shiparr deploy {} --adopt`", facts.situation.own.name)
}

fn folder_of(resident: &Resident) -> String {
    match &resident.folder {
        Some(folder) => shown(&folder.to_string_lossy()),
        None => "an unknown folder".to_owned(),
    }
}

fn names(residents: &[&Resident]) -> String {
    let mut names: Vec<String> = residents.iter().map(|resident| resident.name.clone()).collect();
    names.sort();
    several(&names)
}

/// The first few of a list.
fn several(items: &[String]) -> String {
    let first = items.iter().take(MAX_NAMED).cloned().collect::<Vec<_>>().join(", ");
    match items.len().checked_sub(MAX_NAMED) {
        None | Some(0) => first,
        Some(more) => format!("{first} and {more} more"),
    }
}

fn short(id: &str) -> &str {
    id.get(..SHORT_ID_DIGITS).unwrap_or(id)
}

/// A label as a message may hold it: on one line, and of a length.
fn shown(text: &str) -> String {
    let printable = |character: char| if character.is_control() { '\u{fffd}' } else { character };
    text.chars().take(MAX_SHOWN_CHARS).map(printable).collect()
}
