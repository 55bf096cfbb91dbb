"""The ledger on real files: every tampering is found, a killed writer loses nothing that it acknowledged,
writers take turns."""
import hashlib
import json
import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_threshold import refused, thesis_ad

from thesis_ad.inspection.ledger import (
    SECRETS,
    Entry,
    Ledger,
    backup,
    canonical,
    entries,
    export,
    head_file,
    make_key,
    sign_entry,
    signing_key,
    verify,
    write_head,
)
from thesis_ad.settings import UserError

KEY, OTHER = make_key(b"the key of these tests, 32 bytes"), make_key(b"another key of 32 bytes or more.")
HASH = "ab" * 32


def fill(path, count, key=KEY, first=0):
    with Ledger(path, key) as ledger:
        for i in range(first, first + count):
            ledger.append(f"VIN{i:04d}", HASH, f"{i:064x}", 1 + i / 7, 3.0, "NOK" if i > 14 else "OK",
                "inspected", "Novák")
    return path


# Tampering

def rewrite(db, number, change):
    "Change the JSON of an entry; what needs no key, its hash, is made to fit."
    text, = db.execute("SELECT entry FROM entries WHERE sequence = ?", (number,)).fetchone()
    text = canonical(change(json.loads(text)))
    db.execute("UPDATE entries SET entry = ?, part_id = ?, hash = ? WHERE sequence = ?",
               (text, json.loads(text)["part_id"], hashlib.sha256(text.encode()).hexdigest(), number))


def change_field(db, draw, number, count):
    def change(record):
        name = draw.choice(sorted(record))
        value = record[name]
        return record | {name: value + 1 if isinstance(value, (int, float))
            else {"OK": "NOK", "NOK": "OK"}.get(value, f"{value}1")}
    rewrite(db, number, change)


def add_field(db, draw, number, count): rewrite(db, number, lambda record: record | {"note": "was seen by a person"})


def change_letter(db, draw, number, count):
    text, = db.execute("SELECT entry FROM entries WHERE sequence = ?", (number,)).fetchone()
    at = draw.randrange(len(text))
    db.execute("UPDATE entries SET entry = ? WHERE sequence = ?",
        (text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1:], number))


def change_column(db, draw, number, count):
    column = draw.choice(["part_id", "hash", "signature", "entry"])
    value = draw.choice([f"{column} || '0'", f"CAST({column} AS BLOB)", "''", f"substr({column}, 2)",
        f"upper({column})"])
    if column == "part_id" and value.startswith("upper"): value = "lower(part_id)"
    db.execute(f"UPDATE entries SET {column} = {value} WHERE sequence = ?", (number,))


def renumber(db, draw, number, count):
    db.execute("UPDATE entries SET sequence = ? WHERE sequence = ?",
        (draw.choice([0, -1, count + 1, count + 50]), number))


def remove(db, draw, number, count): db.execute("DELETE FROM entries WHERE sequence = ?", (number,))
def remove_many(db, draw, number, count):
    db.execute("DELETE FROM entries WHERE sequence BETWEEN ? AND ?", (number, number + draw.randrange(9)))
def truncate(db, draw, number, count): db.execute("DELETE FROM entries WHERE sequence >= ?", (number,))
def remove_start(db, draw, number, count): db.execute("DELETE FROM entries WHERE sequence <= ?", (number,))


def close_gap(db, draw, number, count):
    "Remove an entry and renumber those after it."
    remove(db, draw, number, count)
    db.execute("UPDATE entries SET sequence = sequence - 1 WHERE sequence > ?", (number,))
    if number == count: db.execute("UPDATE entries SET part_id = 'VIN' WHERE sequence = 1")


def other_than(draw, number, count): return draw.choice([i for i in range(1, count + 1) if i != number])


def swap(db, draw, number, count):
    other = other_than(draw, number, count)
    rows = [db.execute("SELECT part_id, entry, hash, signature FROM entries WHERE sequence = ?", (i,)).fetchone()
        for i in (number, other)]
    for i, row in zip((other, number), rows):
        db.execute("UPDATE entries SET part_id = ?, entry = ?, hash = ?, signature = ? WHERE sequence = ?", (*row, i))


def replay(db, draw, number, count):
    "An OK entry once more, in place of another or at the end."
    to = draw.choice([count + 1, other_than(draw, number, count)])
    db.execute("INSERT OR REPLACE INTO entries SELECT ?, part_id, entry, hash, signature FROM entries WHERE "
        "sequence = ?", (to, number))


def forge(db, draw, number, count):
    "A new last entry that fits the chain, signed with another key or with the last signature."
    last, signature = db.execute("SELECT hash, signature FROM entries ORDER BY sequence DESC LIMIT 1").fetchone()
    entry = sign_entry(OTHER, sequence=count + 1, time="2026-01-01T00:00:00.000000+00:00", part_id="VIN", bundle=HASH,
        image=HASH, score=0.1, threshold=3.0, decision="OK", status="inspected", operator="", previous=last)
    db.execute("INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
        (*entry.row()[:4], draw.choice([signature, entry.signature])))


def rebuild(db, draw, number, count):
    "The table without its key, so that a number can occur twice."
    db.executescript("ALTER TABLE entries RENAME TO old; CREATE TABLE entries AS SELECT * FROM old; DROP TABLE old")
    db.execute("INSERT INTO entries SELECT * FROM entries WHERE sequence = ?", (number,))


def change_schema(db, draw, number, count):
    db.execute(draw.choice(["CREATE TRIGGER t AFTER INSERT ON entries BEGIN DELETE FROM entries; END",
        "DROP INDEX entries_by_part", "ALTER TABLE entries ADD COLUMN seen TEXT", "CREATE TABLE more (a)",
        "CREATE VIEW v AS SELECT * FROM entries"]))


def on_head(path, draw, old):
    "Something done to the head file; `old` is a genuine one of an earlier moment."
    file = head_file(path)
    text = file.read_text()
    at = draw.randrange(len(text) - 1)
    kind = draw.randrange(6)
    if kind == 0: file.unlink()
    if kind == 1: file.write_bytes(old)
    if kind == 2: file.write_text(text[:at] + chr(ord(text[at]) ^ 1) + text[at + 1:])
    if kind == 3: file.write_text(text[:at])
    if kind == 4: write_head(path, OTHER, 5, HASH)
    if kind == 5: file.write_text(json.dumps({**json.loads(text), "sequence": draw.randrange(40)}))


def on_bytes(path, draw, old):
    "A byte of the database file, where it holds text of an entry; or the file cut short."
    data = bytearray(path.read_bytes())
    if draw.random() < 0.2: data = data[:draw.randrange(len(data))]
    else:
        data[draw.choice([match.start() + draw.randrange(40) for match in re.finditer(
            rb"bundle|previous|signature|VIN0", bytes(data))]) % len(data)] ^= 1 << draw.randrange(7)
    path.write_bytes(data)


IN_SQL = (change_field, add_field, change_letter, change_column, renumber, remove, remove_many, truncate, remove_start,
    close_gap, swap, replay, forge, rebuild, change_schema)
ON_FILES = (on_head, on_bytes)


def in_sql(path, tamper, *arguments):
    with closing(sqlite3.connect(path)) as db:
        db.execute("PRAGMA synchronous=OFF")
        tamper(db, *arguments)
        db.commit()


def contents(path):
    "Everything that a reader gets to see: rows with their types, tables, head."
    head = head_file(path).read_bytes() if head_file(path).exists() else None
    try:
        with closing(sqlite3.connect(path)) as db:
            return (db.execute("SELECT * FROM entries ORDER BY rowid").fetchall(),
                db.execute("SELECT type, name, sql FROM sqlite_schema").fetchall(), head)
    except sqlite3.Error as error: return str(error), head


def tampered(original, old, folder, seed):
    "(what was done, verification) of a copy of a ledger that was tampered with; `old` is an earlier head."
    draw, before, path = random.Random(seed), contents(original), folder / original.name
    while not path.exists() or contents(path) == before:            # what changes nothing is done again, otherwise
        for file in (original, head_file(original)): shutil.copy(file, folder)
        tamper, count = draw.choice(IN_SQL + ON_FILES), len(before[0])
        if tamper in ON_FILES: tamper(path, draw, old)
        else: in_sql(path, tamper, draw, draw.randrange(1, count + 1), count)
    return tamper.__name__, verify(path, KEY)


def ledger_to_tamper_with(folder):
    path = fill(folder / "line.db", 20)
    old = head_file(path).read_bytes()
    fill(path, 10, first=20)
    assert verify(path, KEY).entries == 30
    return path, old


def test_every_tampering_is_found(tmp_path):
    original, old = ledger_to_tamper_with(tmp_path)
    kinds = set()
    for seed in range(120):
        folder = tmp_path / str(seed)
        folder.mkdir()
        what, report = tampered(original, old, folder, seed)
        assert not report.ok, f"{what} with seed {seed} is not found"
        kinds.add(what)
        shutil.rmtree(folder)
    assert len(kinds) == len(IN_SQL + ON_FILES)


@pytest.mark.parametrize("tamper", [change_field, change_letter, remove, truncate, renumber])
def test_the_first_bad_entry_is_named(tmp_path, tamper):
    path = fill(tmp_path / "line.db", 9)
    in_sql(path, tamper, random.Random(3), 4, 9)
    report = verify(path, KEY)
    assert report.bad == (1 if tamper is renumber and report.bad == 1 else 4) and "entry" in str(report)


def test_what_only_a_report_knows(tmp_path):
    "Ledger and head both replaced by older copies: the hash in a later report tells."
    path = fill(tmp_path / "line.db", 5)
    copies = [shutil.copy(file, tmp_path / f"{file.name}.old") for file in (path, head_file(path))]
    fill(path, 1, first=5)
    last = next(entries(path, newest=1))
    for copy, file in zip(copies, (path, head_file(path))): shutil.move(copy, file)
    assert verify(path, KEY).ok and last.hash in verify(path, KEY, known=[last.hash]).reason


def test_a_changed_ledger_is_not_continued(tmp_path):
    "Else a new head would make a removed end legal."
    path = fill(tmp_path / "line.db", 6)
    with Ledger(path, KEY) as ledger:
        in_sql(path, truncate, None, 5, 6)
        with pytest.raises(UserError, match="entry 5"): ledger.append("VIN", HASH, HASH, 1.0, 2.0, "OK", "inspected")
    with pytest.raises(UserError, match="entry 5"): Ledger(path, KEY)
    head_file(path).unlink()
    with pytest.raises(UserError, match="head file is missing"): Ledger(path, KEY)
    path = fill(tmp_path / "gone.db", 2)
    path.unlink()
    with pytest.raises(UserError, match="gone"): Ledger(path, KEY)
    (tmp_path / "text.db").write_text("no database " * 100)
    with pytest.raises(UserError, match="not a ledger"): Ledger(tmp_path / "text.db", KEY)


# Writers

WRITER = """
import sys
from thesis_ad.inspection.ledger import Ledger, make_key
with Ledger(sys.argv[1], make_key(b"the key of these tests, 32 bytes")) as ledger:
    for i in range(int(sys.argv[3])):
        entry = ledger.append(f"{sys.argv[2]}{i:04d}", "ab" * 32, "ab" * 32, 1.0, 2.0, "OK", "inspected")
        print(entry.sequence, entry.hash, flush=True)
"""


def writer(path, name, count):
    return subprocess.Popen([sys.executable, "-c", WRITER, path, name, str(count)], stdout=subprocess.PIPE, text=True)


def killed(path, draw):
    "{sequence: hash} that a writer had acknowledged when it was killed, at a random moment of its writing."
    process = writer(path, "K", 10_000)
    lines = [process.stdout.readline()]
    for _ in range(draw.randrange(20)): lines.append(process.stdout.readline())
    try: process.wait(draw.random() * 0.03)
    except subprocess.TimeoutExpired: process.kill()
    lines += process.communicate()[0].splitlines()
    return {int(sequence): hash
        for sequence, hash in (line.split() for line in lines if len(line.split()) == 2 and len(line.split()[1]) == 64)}


def kill_and_look(path, draw):
    "Kill a writer; whatever it acknowledged is there, and all verifies at once and after the next start."
    known = killed(path, draw)
    report = verify(path, KEY)
    assert report.ok, report
    there = {entry.sequence: entry.hash for entry in entries(path)}
    assert (known and all(there.get(sequence) == hash
        for sequence, hash in known.items())), "an acknowledged entry is lost"
    assert len(there) - max(known) <= 1, "more than the entry being written is there without an acknowledgement"
    with Ledger(path, KEY) as ledger: ledger.append("after", HASH, HASH, 1.0, 2.0, "OK", "inspected")
    again = verify(path, KEY)
    assert again.ok and not again.note and again.entries == len(there) + 1
    return report.note


def test_a_killed_writer_loses_nothing_that_it_acknowledged(tmp_path):
    draw = random.Random(5)
    for _ in range(3): kill_and_look(tmp_path / "line.db", draw)


def test_writers_take_turns(tmp_path):
    path = tmp_path / "line.db"
    writers = [writer(path, name, 25) for name in "AB"]
    acknowledged = [line.split() for process in writers for line in process.communicate()[0].splitlines()]
    assert [process.returncode for process in writers] == [0, 0] and verify(path, KEY).entries == 50
    assert sorted(int(sequence) for sequence, _ in acknowledged) == list(range(1, 51))
    names = [entry.part_id for entry in entries(path)]
    for name in "AB": assert [one for one in names if one[0] == name] == [f"{name}{i:04d}" for i in range(25)]


def test_a_writer_between_the_two_heads(tmp_path, monkeypatch):
    "Stopped before the commit the entry is lost, stopped after it it is there; both verify and are told."
    from thesis_ad.inspection import ledger as module
    path = fill(tmp_path / "line.db", 3)
    settle, calls = module._Settler._settle, []
    def stop_at_the_second(self):
        calls.append(1)
        if len(calls) == 2: raise KeyboardInterrupt
        return settle(self)
    with Ledger(path, KEY) as ledger:
        monkeypatch.setattr(module._Settler, "_settle", stop_at_the_second)
        with pytest.raises(KeyboardInterrupt): ledger.append("after", HASH, HASH, 1.0, 2.0, "OK", "inspected")
        monkeypatch.undo()
    assert verify(path, KEY).entries == 4 and "entry 4, which is there" in verify(path, KEY).note
    in_sql(path, remove, None, 4, 4)
    assert verify(path, KEY).entries == 3 and "lost" in verify(path, KEY).note
    with Ledger(path, KEY): assert verify(path, KEY).note == ""


# Keys, values and files

def test_a_backup_is_of_one_moment_while_others_write(tmp_path):
    "Copies made between the entries of another process verify, and hold what was acknowledged before; none overwrites."
    path = fill(tmp_path / "line.db", 3)
    writer = subprocess.Popen([sys.executable, "-c", "import sys, test_ledger as t\n"
        "t.fill(sys.argv[1], 60, first=3)", path], cwd=Path(__file__).parent)
    counts = []
    while writer.poll() is None or not counts:
        before = sum(1 for _ in entries(path))
        counts.append(backup(path, tmp_path / f"copy{len(counts)}" / "line.db"))
        copied = verify(tmp_path / f"copy{len(counts) - 1}" / "line.db", KEY)
        assert copied.ok and copied.entries == counts[-1] >= before, copied
    assert writer.returncode == 0 and counts == sorted(counts)
    assert backup(path, tmp_path / "last.db") == 63 and not list(tmp_path.glob("last.db-*"))
    with Ledger(tmp_path / "last.db", KEY) as ledger: assert ledger.last.sequence == 63, "a copy can be continued"
    with pytest.raises(UserError, match="overwrites nothing"): backup(path, tmp_path / "last.db")
    with pytest.raises(UserError, match="there is no ledger"): backup(tmp_path / "none.db", tmp_path / "x.db")
    (tmp_path / "text.db").write_text("no database, but long enough to be one" * 40)
    with pytest.raises(UserError, match="cannot be copied"): backup(tmp_path / "text.db", tmp_path / "x.db")
    assert not (tmp_path / "x.db").exists()
    assert "63 entries" in thesis_ad("ledger", "backup", path, "-o", tmp_path / "b.db").stdout


def test_keys(tmp_path, monkeypatch):
    for name in SECRETS: monkeypatch.delenv(name, raising=False)
    with pytest.raises(UserError, match="needs a key"): signing_key()
    monkeypatch.setenv("AUTOWELD_SECRET_KEY", "a" * 32)
    assert signing_key() == make_key(b"a" * 32)
    monkeypatch.setenv("THESIS_AD_SECRET_KEY", "short")
    with pytest.raises(UserError, match="THESIS_AD_SECRET_KEY has 5 bytes"): signing_key()
    (tmp_path / "key").write_bytes(b" " + b"k" * 32 + b"\n")
    assert signing_key(tmp_path / "key") == make_key(b"k" * 32) and "kkk" not in repr(signing_key(tmp_path / "key"))
    with pytest.raises(UserError, match="cannot be read"): signing_key(tmp_path / "no key")


def test_rotation(tmp_path):
    path = fill(tmp_path / "line.db", 3)
    with pytest.raises(UserError, match="not among those given"): Ledger(path, OTHER)
    with Ledger(path, OTHER, older=[KEY]) as ledger: ledger.append("VIN", HASH, HASH, 1.0, 2.0, "OK", "inspected")
    assert verify(path, [OTHER, KEY]).entries == 4
    assert [entry.key for entry in entries(path)] == [KEY.id] * 3 + [OTHER.id]
    assert verify(path, OTHER).bad == 1 and not verify(path, KEY).ok


@settings(max_examples=12, deadline=None)
@given(st.text(st.characters(), max_size=20), st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["OK", "NOK", "unread"]))
def test_any_text_and_any_number(tmp_path_factory, text, score, decision):
    path = tmp_path_factory.mktemp("any") / "line.db"
    with Ledger(path, KEY) as ledger:
        entry = ledger.append(text + "\ud800", HASH, HASH, score, None, decision, text, text)
    assert verify(path, KEY).ok and list(entries(path)) == [entry] and entry.score == score and entry.operator == text
    assert export(path, path.with_suffix(".jsonl")) == 1
    assert Entry(**json.loads(path.with_suffix(".jsonl").read_text())) == entry


def test_values_that_are_refused(tmp_path):
    with Ledger(tmp_path / "line.db", KEY) as ledger:
        for score, decision in ((float("nan"), "NOK"), (float("inf"), "NOK"), (1.0, "fine")):
            with pytest.raises(UserError): ledger.append("VIN", HASH, HASH, score, 2.0, decision, "inspected")
    assert verify(tmp_path / "line.db", KEY).entries == 0


# The command line

def test_ledger_commands(tmp_path, monkeypatch):
    path = fill(tmp_path / "line.db", 5)
    for name in SECRETS: monkeypatch.delenv(name, raising=False)
    refused(thesis_ad("ledger", "verify", path), "needs a key")
    monkeypatch.setenv("THESIS_AD_SECRET_KEY", KEY.secret.decode())
    result = thesis_ad("ledger", "verify", path)
    assert result.returncode == 0 and "5 entries verified" in result.stdout, result.stderr
    for name in ("out.csv", "out.jsonl"):
        assert "5 entries" in thesis_ad("ledger", "export", path, "-o", tmp_path / name).stdout
    assert [json.loads(line)["part_id"] for line in (tmp_path / "out.jsonl").read_text().splitlines()] == [f"VIN{i:04d}"
        for i in range(5)]
    assert (tmp_path / "out.csv").read_text().startswith("sequence,time,part_id,")
    refused(thesis_ad("ledger", "export", path, "-o", tmp_path / "out.txt"), "txt", "csv")
    refused(thesis_ad("ledger", "verify", tmp_path / "none.db"), "no ledger")
    refused(thesis_ad("ledger", "verify", path, "--report", path), "not the JSON file of a report")
    in_sql(path, change_letter, random.Random(1), 3, 5)
    result = thesis_ad("ledger", "verify", path)
    assert result.returncode == 1 and "entry 3 is bad" in result.stdout and "Traceback" not in result.stderr


def test_a_reader_without_write_permission_misses_no_entry(tmp_path, monkeypatch):
    "As long as the newest entries are in the log of SQLite alone, reading is refused; afterwards all are read."
    path = fill(tmp_path / "line.db", 3)
    monkeypatch.setattr(os, "access", lambda *_: False)
    with Ledger(path, KEY) as ledger:
        ledger.append("VIN9999", HASH, HASH, 1.0, 2.0, "OK", "inspected")
        for read in (lambda: list(entries(path)), lambda: verify(path, KEY), lambda: backup(path, tmp_path / "b.db")):
            with pytest.raises(UserError, match="without write permission.*ledger backup"): read()
    assert verify(path, KEY).entries == len(list(entries(path))) == backup(path, tmp_path / "b.db") == 4


def test_reading_changes_nothing(tmp_path):
    path = fill(tmp_path / "line.db", 2)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    verify(path, KEY); list(entries(path))
    assert {file.name: file.read_bytes() for file in Path(tmp_path).iterdir()
        if file.suffix not in (".db-shm", ".db-wal")} == before
    assert os.path.getsize(path) == len(before["line.db"])
