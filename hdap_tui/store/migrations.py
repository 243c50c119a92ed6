"""The database's tables, in numbered steps that an older file catches up on.

A step that was published is never edited: what changes later is a new step.
"""

from __future__ import annotations

from sqlite_utils import Database, Migrations

from hdap_tui.errors import RefusedError
from hdap_tui.store.database import APPLICATION_ID, SCHEMA_VERSION, Store

migrations = Migrations("hdap")


def migrate(store: Store) -> None:
    """Bring a database up to date; several processes may try at once.

    Raises:
        RefusedError: a step that this version does not know has been applied to it.
    """
    with store.write() as connection:
        known = {f"m{number:03d}" for number in range(1, SCHEMA_VERSION + 1)}
        applied = {step.name.partition("_")[0] for step in migrations.applied(store.db)}
        if applied - known:
            raise RefusedError(f"{store.path}: written by a newer version; update hdap.")
        migrations.apply(store.db)
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute(f"PRAGMA user_version = {SCHEMA_VERSION}")


@migrations()
def m001_first_tables(db: Database) -> None:
    """Everything of the first version."""
    db.executescript(_FIRST)


@migrations()
def m002_facts(db: Database) -> None:
    """What devices say of themselves; jobs are told by their folders alone."""
    db.executescript(_FACTS)


@migrations()
def m003_staged_deployments(db: Database) -> None:
    """Deployments in stages that can be taken up again, with a journal of every step."""
    db.executescript(_STAGED)


@migrations()
def m004_latest_facts(db: Database) -> None:
    """The latest facts of each device at hand, those that change by themselves among them."""
    db.executescript(_LATEST_FACTS)


@migrations()
def m005_configurations(db: Database) -> None:
    """A measurement of another batch, thread count or provider than the standard one says so."""
    db.executescript(_CONFIGURATIONS)


@migrations()
def m006_since(db: Database) -> None:
    """A device's stage says since when it lasts."""
    db.executescript(_SINCE)


@migrations()
def m007_places(db: Database) -> None:
    """Clusters that last, and each device's place among them."""
    db.executescript(_PLACES)


@migrations()
def m008_alerts_with_a_life(db: Database) -> None:
    """Alerts with more states, silences, what is still to be sent, and what followed from them."""
    db.executescript(_LIFE)


_LIFE = """
CREATE TABLE silences (
    id INTEGER PRIMARY KEY,
    selector TEXT NOT NULL,
    reason TEXT NOT NULL,
    who TEXT NOT NULL DEFAULT '',
    created_at TEXT NOT NULL,
    until TEXT NOT NULL,
    -- empty: it lasts until its time is over
    ended_at TEXT NOT NULL DEFAULT '',
    ended_by TEXT NOT NULL DEFAULT ''
);

-- One open alert a subject, model and sort of change: the latest of those that are open is kept.
UPDATE alerts SET state = 'resolved', resolved_at = (
    SELECT max(opened_at) FROM alerts x WHERE x.scope = alerts.scope AND x.subject = alerts.subject
), reason = 'told by a later alert'
WHERE state <> 'resolved' AND kind IN ('step', 'ramp') AND EXISTS (
    SELECT 1 FROM alerts x WHERE x.scope = alerts.scope AND x.subject = alerts.subject
        AND x.model = alerts.model AND x.kind IN ('step', 'ramp') AND x.state <> 'resolved'
        AND x.id > alerts.id
);
-- Renaming takes the history's references along; both tables are made anew, the history first gone.
DROP INDEX alerts_open;
ALTER TABLE alerts RENAME TO alerts_before;
CREATE TABLE alerts (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL CHECK (scope IN ('device', 'cluster', 'fleet')),
    subject TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (
        state IN ('pending', 'firing', 'acknowledged', 'recovering', 'resolved')
    ),
    direction TEXT NOT NULL,
    model TEXT NOT NULL,
    baseline_ms REAL NOT NULL,
    now_ms REAL NOT NULL,
    size_percent REAL NOT NULL,
    -- the size as last written into the history
    told_percent REAL NOT NULL,
    onset_at TEXT NOT NULL,
    opened_at TEXT NOT NULL,
    -- empty: it was never more than pending
    fired_at TEXT NOT NULL DEFAULT '',
    acknowledged_at TEXT NOT NULL DEFAULT '',
    acknowledged_by TEXT NOT NULL DEFAULT '',
    resolved_at TEXT NOT NULL DEFAULT '',
    -- how many devices it is about, and how many narrower alerts it stands for
    devices INTEGER NOT NULL DEFAULT 1,
    inhibited INTEGER NOT NULL DEFAULT 0,
    -- the wider alert that stands for it
    inhibited_by INTEGER REFERENCES alerts (id),
    silence_id INTEGER REFERENCES silences (id),
    emulated INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT '',
    -- by what it was told, as JSON
    evidence TEXT NOT NULL DEFAULT '{}',
    -- what the world outside was told of it last
    told TEXT NOT NULL DEFAULT '' CHECK (told IN ('', 'firing', 'resolved'))
);
INSERT INTO alerts (
    id, scope, subject, kind, state, direction, model, baseline_ms, now_ms, size_percent,
    told_percent, onset_at, opened_at, fired_at, acknowledged_at, resolved_at, inhibited, emulated,
    reason, told
) SELECT id, scope, subject, kind, state, direction, model, baseline_ms, now_ms, size_percent,
    told_percent, onset_at, opened_at, opened_at, acknowledged_at, resolved_at, inhibited, emulated,
    reason, CASE state WHEN 'resolved' THEN 'resolved' ELSE 'firing' END
FROM alerts_before;
CREATE TABLE alert_events_living (
    id INTEGER PRIMARY KEY,
    alert_id INTEGER NOT NULL REFERENCES alerts (id),
    at TEXT NOT NULL,
    what TEXT NOT NULL,
    text TEXT NOT NULL DEFAULT '',
    -- empty: hdap itself
    who TEXT NOT NULL DEFAULT ''
);
INSERT INTO alert_events_living (id, alert_id, at, what, text)
SELECT id, alert_id, at, what, text FROM alert_events;
DROP TABLE alert_events;
ALTER TABLE alert_events_living RENAME TO alert_events;
CREATE INDEX alert_events_by_alert ON alert_events (alert_id);
DROP TABLE alerts_before;
CREATE UNIQUE INDEX alerts_open ON alerts (
    scope, subject, model, (CASE WHEN kind IN ('step', 'ramp') THEN 'level' ELSE kind END)
) WHERE state <> 'resolved';
CREATE INDEX alerts_by_state ON alerts (state, resolved_at);

-- rounds in a row without a value
ALTER TABLE drift_states ADD COLUMN missed INTEGER NOT NULL DEFAULT 0;

-- Notifications, written together with what they tell, and kept until somebody took them.
CREATE TABLE outbox (
    id INTEGER PRIMARY KEY,
    channel TEXT NOT NULL CHECK (channel IN ('webhook', 'command')),
    body TEXT NOT NULL,
    created_at TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'waiting' CHECK (state IN ('waiting', 'sent', 'given up')),
    attempts INTEGER NOT NULL DEFAULT 0,
    -- seconds since 1970
    next_at REAL NOT NULL DEFAULT 0,
    finished_at TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT ''
);
CREATE INDEX outbox_waiting ON outbox (channel, id) WHERE state = 'waiting';

-- What should follow from an alert or a latency, and what became of it.
CREATE TABLE decisions (
    id INTEGER PRIMARY KEY,
    -- what it is about, so that nothing is decided twice: "alert 3", "objective"
    cause TEXT NOT NULL,
    alert_id INTEGER REFERENCES alerts (id),
    state TEXT NOT NULL CHECK (
        state IN ('suggested', 'starting', 'started', 'failed', 'withdrawn', 'undone')
    ),
    at TEXT NOT NULL,
    reason TEXT NOT NULL,
    recipe TEXT NOT NULL DEFAULT '',
    job TEXT NOT NULL DEFAULT ''
);
-- One suggestion a cause, and one start at a time for a fleet.
CREATE UNIQUE INDEX decisions_suggested ON decisions (cause) WHERE state = 'suggested';
CREATE UNIQUE INDEX decisions_starting ON decisions (state) WHERE state = 'starting';
CREATE TABLE decision_steps (
    id INTEGER PRIMARY KEY,
    decision_id INTEGER NOT NULL REFERENCES decisions (id),
    at TEXT NOT NULL,
    who TEXT NOT NULL DEFAULT '',
    what TEXT NOT NULL,
    text TEXT NOT NULL DEFAULT ''
);
CREATE INDEX decision_steps_by_decision ON decision_steps (decision_id);
"""


@migrations()
def m009_history(db: Database) -> None:
    """What the fleet was at any moment, and measurements rolled up when they are old."""
    db.executescript(_HISTORY)


# Microseconds since 1970, to the millisecond.
_NOW = "CAST(round((julianday('now') - 2440587.5) * 86400000) AS INTEGER) * 1000"
_LOGGED = ("name", "tags", "emulated", "state", "error", "detail", "model_id")
# An upsert that set a trigger off forbids it to replace a row, so the old one is deleted first.
_WRITE_LOG = f"""
    DELETE FROM device_log WHERE device_id = new.id AND at = {_NOW};
    INSERT INTO device_log VALUES (
        new.id, {_NOW}, new.position IS NOT NULL, {", ".join(f"new.{one}" for one in _LOGGED)}
    );
"""
_HISTORY = f"""
-- One row whenever something about a device changed; the latest up to a moment held then.
CREATE TABLE device_log (
    device_id INTEGER NOT NULL REFERENCES devices (id),
    at INTEGER NOT NULL,
    -- whether the settings named it
    listed INTEGER NOT NULL,
    name TEXT NOT NULL,
    tags TEXT NOT NULL,
    emulated INTEGER NOT NULL,
    state TEXT NOT NULL,
    error TEXT NOT NULL,
    detail TEXT NOT NULL,
    model_id INTEGER REFERENCES models (id),
    PRIMARY KEY (device_id, at)
) WITHOUT ROWID;
INSERT INTO device_log
    SELECT id, {_NOW}, position IS NOT NULL, {", ".join(_LOGGED)} FROM devices;
CREATE TRIGGER device_log_added AFTER INSERT ON devices BEGIN {_WRITE_LOG} END;
-- The details of an error differ each time, so they alone are no change.
CREATE TRIGGER device_log_changed AFTER UPDATE ON devices
WHEN (old.position IS NULL) <> (new.position IS NULL)
    OR {" OR ".join(f"old.{one} IS NOT new.{one}" for one in _LOGGED if one != "detail")}
BEGIN {_WRITE_LOG} END;

-- How an alert stood when its history was told of it; null in lines from before this was kept.
ALTER TABLE alert_events ADD COLUMN kind TEXT;
ALTER TABLE alert_events ADD COLUMN state TEXT;
ALTER TABLE alert_events ADD COLUMN direction TEXT;
ALTER TABLE alert_events ADD COLUMN baseline_ms REAL;
ALTER TABLE alert_events ADD COLUMN now_ms REAL;
ALTER TABLE alert_events ADD COLUMN size_percent REAL;
ALTER TABLE alert_events ADD COLUMN devices INTEGER;
ALTER TABLE alert_events ADD COLUMN inhibited INTEGER;
ALTER TABLE alert_events ADD COLUMN inhibited_by INTEGER;
ALTER TABLE alert_events ADD COLUMN silence_id INTEGER;

CREATE INDEX sweeps_by_end ON sweeps (finished_at);
CREATE INDEX sweeps_by_start ON sweeps (started_at);
CREATE INDEX clusterings_by_time ON clusterings (at);

-- Samples that are old: one row an hour, later one a day.
CREATE TABLE rollups (
    device_id INTEGER NOT NULL REFERENCES devices (id),
    model_id INTEGER NOT NULL REFERENCES models (id),
    -- where the hour or day begins, UTC
    at INTEGER NOT NULL,
    -- its seconds
    span INTEGER NOT NULL CHECK (span IN (3600, 86400)),
    configuration TEXT NOT NULL,
    -- good samples; those that failed are in errors, by class
    count INTEGER NOT NULL,
    median_ms REAL,
    low_ms REAL,
    high_ms REAL,
    contended REAL NOT NULL,
    energy_mj REAL,
    errors TEXT NOT NULL DEFAULT '{{}}',
    remarks TEXT NOT NULL DEFAULT '{{}}',
    PRIMARY KEY (device_id, model_id, span, at, configuration)
) WITHOUT ROWID;

-- the key by which the device was last trusted, as OpenSSH prints its fingerprint
ALTER TABLE devices ADD COLUMN host_key TEXT NOT NULL DEFAULT '';
"""


@migrations()
def m010_watchers(db: Database) -> None:
    """Who watches, when what was due, which sweep is whose, and pauses."""
    db.executescript(_WATCHERS)


_WATCHERS = """
-- one row for each run of a watcher
CREATE TABLE watchers (
    id INTEGER PRIMARY KEY,
    host TEXT NOT NULL,
    boot TEXT NOT NULL,
    pid INTEGER NOT NULL,
    since TEXT NOT NULL,
    -- empty: it runs, or was killed
    ended_at TEXT NOT NULL DEFAULT '',
    -- grows for as long as it lives
    beat INTEGER NOT NULL DEFAULT 0,
    heard_at TEXT NOT NULL,
    doing TEXT NOT NULL DEFAULT '',
    doing_since TEXT NOT NULL DEFAULT '',
    next_sweep_at TEXT NOT NULL DEFAULT '',
    next_round_at TEXT NOT NULL DEFAULT '',
    missed_sweeps INTEGER NOT NULL DEFAULT 0,
    missed_rounds INTEGER NOT NULL DEFAULT 0,
    error TEXT NOT NULL DEFAULT '',
    error_at TEXT NOT NULL DEFAULT '',
    -- whom maintenance windows leave alone just now
    rests TEXT NOT NULL DEFAULT '[]'
);
-- the time of each grid that was taken last, seconds since 1970
CREATE TABLE watch_times (kind TEXT PRIMARY KEY, at REAL NOT NULL) WITHOUT ROWID;
CREATE TABLE pauses (
    id INTEGER PRIMARY KEY,
    -- names; none: the whole fleet
    devices TEXT NOT NULL,
    since TEXT NOT NULL,
    until TEXT NOT NULL,
    reason TEXT NOT NULL DEFAULT '',
    -- when it was ended by command
    ended_at TEXT NOT NULL DEFAULT ''
);
CREATE INDEX pauses_open ON pauses (until) WHERE ended_at = '';
-- null: somebody's own sweep, which no watcher takes up
ALTER TABLE sweeps ADD COLUMN watcher_id INTEGER REFERENCES watchers (id);
"""


_PLACES = """
-- the clusters as they stand: one row
CREATE TABLE cluster_state (
    id INTEGER PRIMARY KEY CHECK (id = 1),
    -- the models that they are told from
    digests TEXT NOT NULL,
    -- ids of clusters are given once
    next_id INTEGER NOT NULL,
    state TEXT NOT NULL
);
CREATE TABLE device_places (
    device_id INTEGER PRIMARY KEY REFERENCES devices (id),
    record BLOB NOT NULL
);
"""


_SINCE = """
-- when this kind of stage began; empty where nothing is being done, or nobody said
ALTER TABLE devices ADD COLUMN stage_since TEXT NOT NULL DEFAULT '';
"""


_CONFIGURATIONS = """
-- empty: the standard configuration, which alone tells drift, clusters and the latest latency
ALTER TABLE samples ADD COLUMN configuration TEXT NOT NULL DEFAULT '';
"""


_LATEST_FACTS = """
CREATE TABLE device_facts_latest (
    device_id INTEGER PRIMARY KEY REFERENCES devices (id),
    -- grows with every change, so that nobody reads the same facts twice
    stamp INTEGER NOT NULL,
    at TEXT NOT NULL,
    facts TEXT NOT NULL
);
"""

_STAGED = """
-- The same table with one more state, and with what a later process needs to go on. Renaming takes
-- the references of its devices along, so these are made anew, too.
ALTER TABLE deployments RENAME TO deployments_before;
CREATE TABLE deployments (
    id INTEGER PRIMARY KEY,
    model_id INTEGER NOT NULL REFERENCES models (id),
    state TEXT NOT NULL CHECK (
        state IN ('running', 'interrupted', 'finished', 'partly', 'failed', 'rolled back')
    ),
    started_at TEXT NOT NULL,
    finished_at TEXT NOT NULL DEFAULT '',
    speedup REAL,
    low REAL,
    high REAL,
    verdict TEXT NOT NULL DEFAULT '',
    -- what the locks on the devices say
    token TEXT NOT NULL DEFAULT '',
    options TEXT NOT NULL DEFAULT '{}',
    -- the stage that is worked on, from 1
    stage INTEGER NOT NULL DEFAULT 0,
    -- why the rest was left out
    stopped TEXT NOT NULL DEFAULT ''
);
INSERT INTO deployments (
    id, model_id, state, started_at, finished_at, speedup, low, high, verdict
) SELECT id, model_id, state, started_at, finished_at, speedup, low, high, verdict
FROM deployments_before;
CREATE TABLE deployment_devices_staged (
    deployment_id INTEGER NOT NULL REFERENCES deployments (id),
    device_id INTEGER NOT NULL REFERENCES devices (id),
    previous_id INTEGER REFERENCES models (id),
    switched INTEGER NOT NULL DEFAULT 0,
    speedup REAL,
    low REAL,
    high REAL,
    verdict TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (deployment_id, device_id)
) WITHOUT ROWID;
INSERT INTO deployment_devices_staged SELECT * FROM deployment_devices;
DROP TABLE deployment_devices;
ALTER TABLE deployment_devices_staged RENAME TO deployment_devices;
DROP TABLE deployments_before;

ALTER TABLE deployment_devices ADD COLUMN stage INTEGER NOT NULL DEFAULT 1;
ALTER TABLE deployment_devices ADD COLUMN place INTEGER NOT NULL DEFAULT 0;
-- the step that is being done or was done last
ALTER TABLE deployment_devices ADD COLUMN step TEXT NOT NULL DEFAULT '';
-- empty: undecided
ALTER TABLE deployment_devices ADD COLUMN outcome TEXT NOT NULL DEFAULT ''
    CHECK (outcome IN ('', 'kept', 'going back', 'back', 'failed'));
-- the block medians of old and new that the verdict comes from
ALTER TABLE deployment_devices ADD COLUMN proof TEXT NOT NULL DEFAULT '';
UPDATE deployment_devices SET outcome = CASE WHEN switched THEN 'kept' ELSE 'failed' END;

CREATE TABLE deployment_steps (
    id INTEGER PRIMARY KEY,
    deployment_id INTEGER NOT NULL REFERENCES deployments (id),
    device_id INTEGER NOT NULL REFERENCES devices (id),
    at TEXT NOT NULL,
    step TEXT NOT NULL,
    phase TEXT NOT NULL CHECK (phase IN ('begun', 'done', 'failed')),
    text TEXT NOT NULL DEFAULT ''
);
CREATE INDEX deployment_steps_by_device ON deployment_steps (deployment_id, device_id);
"""

_FACTS = """
-- One row whenever a device's facts changed; the latest is in force.
CREATE TABLE device_facts (
    device_id INTEGER NOT NULL REFERENCES devices (id),
    at TEXT NOT NULL,
    facts TEXT NOT NULL,
    PRIMARY KEY (device_id, at)
) WITHOUT ROWID;
DROP TABLE jobs;
"""

_FIRST = """
CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;
INSERT INTO meta VALUES ('version', 1);

CREATE TABLE models (
    id INTEGER PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    -- a candidate of a search is measured without ever getting a name
    name TEXT UNIQUE,
    kind TEXT NOT NULL DEFAULT 'candidate'
        CHECK (kind IN ('candidate', 'probe', 'model', 'artifact')),
    path TEXT NOT NULL DEFAULT '',
    bytes INTEGER NOT NULL DEFAULT 0,
    created_at TEXT NOT NULL,
    parent_id INTEGER REFERENCES models (id),
    job TEXT NOT NULL DEFAULT '',
    metrics TEXT NOT NULL DEFAULT '{}'
);

CREATE TABLE devices (
    id INTEGER PRIMARY KEY,
    name TEXT NOT NULL UNIQUE,
    -- the order of the settings; null where they no longer name the device
    position INTEGER,
    tags TEXT NOT NULL DEFAULT '[]',
    emulated INTEGER NOT NULL DEFAULT 0,
    state TEXT NOT NULL DEFAULT 'unknown'
        CHECK (state IN ('unknown', 'ok', 'busy', 'failed', 'off')),
    error TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    stage TEXT NOT NULL DEFAULT '',
    seen_at TEXT NOT NULL DEFAULT '',
    model_id INTEGER REFERENCES models (id),
    previous_model_id INTEGER REFERENCES models (id)
);
CREATE INDEX devices_by_model ON devices (model_id, position);

CREATE TABLE sweeps (
    id INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    started_at TEXT NOT NULL,
    -- null: half a sweep, running or broken off
    finished_at TEXT
);
CREATE INDEX sweeps_by_kind ON sweeps (kind, finished_at);

-- One row a measurement, never overwritten. Time is microseconds since 1970, UTC.
CREATE TABLE samples (
    device_id INTEGER NOT NULL REFERENCES devices (id),
    model_id INTEGER NOT NULL REFERENCES models (id),
    at INTEGER NOT NULL,
    sweep_id INTEGER NOT NULL REFERENCES sweeps (id),
    median_ms REAL,
    low_ms REAL,
    high_ms REAL,
    contended REAL NOT NULL,
    error TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (device_id, model_id, at)
) WITHOUT ROWID;
CREATE INDEX samples_by_sweep ON samples (sweep_id);

-- What is read one at a time stands apart, so that histories stay narrow.
CREATE TABLE sample_details (
    device_id INTEGER NOT NULL,
    model_id INTEGER NOT NULL,
    at INTEGER NOT NULL,
    rest TEXT NOT NULL,
    PRIMARY KEY (device_id, model_id, at),
    FOREIGN KEY (device_id, model_id, at) REFERENCES samples (device_id, model_id, at)
) WITHOUT ROWID;

-- The newest good sample of each pair, kept with it, so that nobody searches the history for it.
CREATE TABLE device_latest (
    device_id INTEGER NOT NULL REFERENCES devices (id),
    model_id INTEGER NOT NULL REFERENCES models (id),
    at INTEGER,
    median_ms REAL,
    low_ms REAL,
    high_ms REAL,
    contended REAL NOT NULL DEFAULT 0,
    -- the last medians, oldest first, as 32-bit floats
    recent BLOB NOT NULL DEFAULT x'',
    PRIMARY KEY (device_id, model_id)
) WITHOUT ROWID;
CREATE INDEX device_latest_by_model ON device_latest (model_id);

CREATE TABLE clusterings (
    id INTEGER PRIMARY KEY,
    at TEXT NOT NULL,
    map TEXT NOT NULL
);

CREATE TABLE drift_states (
    scope TEXT NOT NULL,
    subject TEXT NOT NULL,
    model_id INTEGER NOT NULL REFERENCES models (id),
    state TEXT NOT NULL,
    baseline_ms REAL,
    updated_at TEXT NOT NULL,
    PRIMARY KEY (scope, subject, model_id)
) WITHOUT ROWID;

CREATE TABLE alerts (
    id INTEGER PRIMARY KEY,
    scope TEXT NOT NULL CHECK (scope IN ('device', 'cluster', 'fleet')),
    subject TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('firing', 'acknowledged', 'resolved')),
    direction TEXT NOT NULL,
    model TEXT NOT NULL,
    baseline_ms REAL NOT NULL,
    now_ms REAL NOT NULL,
    size_percent REAL NOT NULL,
    -- the size as last written into the history
    told_percent REAL NOT NULL,
    onset_at TEXT NOT NULL,
    opened_at TEXT NOT NULL,
    acknowledged_at TEXT NOT NULL DEFAULT '',
    resolved_at TEXT NOT NULL DEFAULT '',
    inhibited INTEGER NOT NULL DEFAULT 0,
    emulated INTEGER NOT NULL DEFAULT 0,
    reason TEXT NOT NULL DEFAULT ''
);
CREATE UNIQUE INDEX alerts_open ON alerts (scope, subject, kind) WHERE state <> 'resolved';

CREATE TABLE alert_events (
    id INTEGER PRIMARY KEY,
    alert_id INTEGER NOT NULL REFERENCES alerts (id),
    at TEXT NOT NULL,
    what TEXT NOT NULL,
    text TEXT NOT NULL DEFAULT ''
);
CREATE INDEX alert_events_by_alert ON alert_events (alert_id);

CREATE TABLE jobs (
    id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    state TEXT NOT NULL CHECK (
        state IN ('queued', 'running', 'finished', 'failed', 'cancelled', 'interrupted')
    ),
    folder TEXT NOT NULL,
    created_at TEXT NOT NULL,
    updated_at TEXT NOT NULL,
    step TEXT NOT NULL,
    progress REAL NOT NULL,
    left_s REAL,
    result TEXT NOT NULL,
    error TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX jobs_by_age ON jobs (created_at);

CREATE TABLE deployments (
    id INTEGER PRIMARY KEY,
    model_id INTEGER NOT NULL REFERENCES models (id),
    state TEXT NOT NULL CHECK (
        state IN ('running', 'finished', 'partly', 'failed', 'rolled back')
    ),
    started_at TEXT NOT NULL,
    finished_at TEXT NOT NULL DEFAULT '',
    speedup REAL,
    low REAL,
    high REAL,
    verdict TEXT NOT NULL DEFAULT ''
);

CREATE TABLE deployment_devices (
    deployment_id INTEGER NOT NULL REFERENCES deployments (id),
    device_id INTEGER NOT NULL REFERENCES devices (id),
    previous_id INTEGER REFERENCES models (id),
    switched INTEGER NOT NULL DEFAULT 0,
    speedup REAL,
    low REAL,
    high REAL,
    verdict TEXT NOT NULL DEFAULT '',
    error TEXT NOT NULL DEFAULT '',
    detail TEXT NOT NULL DEFAULT '',
    at TEXT NOT NULL DEFAULT '',
    PRIMARY KEY (deployment_id, device_id)
) WITHOUT ROWID;
"""
