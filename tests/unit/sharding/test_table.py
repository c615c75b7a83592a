"""The table source: every way to write labels, and every way to get the file wrong."""

from __future__ import annotations

import json
import threading
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fault_images import jpeg

from sharding import sources
from sharding.build import build_dataset
from sharding.errors import UserError
from sharding.index import read_split
from sharding.records import SourceData
from trainer.data.reader import ImageReader


def load(path: Path, **options: object) -> SourceData:
    data = sources.load("table", {"source": str(path), **options})
    assert isinstance(data, SourceData)
    return data


def labels(data: SourceData, split: str = "train") -> list[tuple[str, list[str], list[str]]]:
    names = [c.name for c in data.classes]
    rows = data.splits[split].table.to_pylist()
    return [(r["sample_id"], [names[i] for i in r["pos"]], [names[i] for i in r["neg"]]) for r in rows]


EXPECTED = [("a", ["cat", "dog"], ["fox"]), ("b", [], ["cat"]), ("c", ["fox"], [])]


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_csv_lists_with_bom_crlf_and_quotes(tmp_path: Path, newline: str, encoding: str) -> None:
    lines = ["image,note,positive,negative", 'a.jpg,"one, ""two""",cat| dog ,fox', "b.jpg,,,cat", "c.jpg,x,fox,", ""]
    data = load(write(tmp_path / "t.csv", newline.join(lines), encoding))
    assert labels(data) == EXPECTED


def test_jsonl_and_parquet_hold_real_lists(tmp_path: Path) -> None:
    rows = [
        {"image": "a.jpg", "positive": ["cat", "dog"], "negative": ["fox"]},
        {"image": "b.jpg", "positive": [], "negative": ["cat"]},
        {"image": "c.jpg", "positive": ["fox"], "negative": []},
    ]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)))
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    assert labels(load(tmp_path / "t.jsonl")) == labels(load(tmp_path / "t.parquet")) == EXPECTED


def test_one_column_a_class(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,cat,dog,fox\na.jpg,1,1,-1\nb.jpg,-1,0,\nc.jpg,,0,1\n")
    assert labels(load(path)) == EXPECTED
    both = load(write(tmp_path / "u.csv", "image,cat,dog\na.jpg,1,0\nb.jpg,,1\n"))
    assert labels(both) == [("a", ["cat"], ["dog"]), ("b", ["dog"], [])]
    unknown = load(tmp_path / "u.csv", zero="unobserved")
    assert labels(unknown) == [("a", ["cat"], []), ("b", ["dog"], [])]


def test_splits_come_from_a_column_or_the_public_cut(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,split,positive\na.jpg,test,cat\nb.jpg,train,cat\nc.jpg,train,dog\n")
    data = load(path)
    assert {name: len(s.table) for name, s in data.splits.items()} == {"train": 2, "test": 1}
    rows = "".join(f"{n}.jpg,cat\n" for n in range(10))
    cut = load(write(tmp_path / "u.csv", "image,positive\n" + rows), val_share=0.3)
    assert {name: len(s.table) for name, s in cut.splits.items()} == {"train": 7, "val": 3}


def test_fully_labelled_lists_name_every_absent_class(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,positive\na.jpg,cat|dog\nb.jpg,fox\n")
    assert labels(load(path, fully_labelled=True)) == [("a", ["cat", "dog"], ["fox"]), ("b", ["fox"], ["cat", "dog"])]


def test_a_class_list_fixes_order_and_set(tmp_path: Path) -> None:
    write(tmp_path / "classes.txt", "fox\ndog\ncat\n")
    path = write(tmp_path / "t.csv", "image,positive\na.jpg,cat\nb.jpg,dgo\n")
    with pytest.raises(UserError, match=r"row 2: unknown class 'dgo' — did you mean 'dog'\?"):
        load(path, classes=str(tmp_path / "classes.txt"))
    write(path, "image,positive\na.jpg,cat\nb.jpg,dog\n")
    assert [c.name for c in load(path, classes=str(tmp_path / "classes.txt")).classes] == ["fox", "dog", "cat"]


def test_contradictions_are_listed_or_resolved(tmp_path: Path) -> None:
    path = write(tmp_path / "t.csv", "image,positive,negative\na.jpg,cat|dog,cat\nb.jpg,dog,cat\n")
    with pytest.raises(UserError, match=r"1 labels are both positive and negative, e\.g\. 'a': 'cat'"):
        load(path)
    assert labels(load(path, on_conflict="positive"))[0] == ("a", ["cat", "dog"], [])
    assert labels(load(path, on_conflict="negative"))[0] == ("a", ["dog"], ["cat"])
    assert labels(load(path, on_conflict="unobserved"))[0] == ("a", ["dog"], [])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("picture,positive\na.jpg,cat\n", "no column 'image'"),
        ("image,positive\n", "has no rows"),
        ("", "cannot be read"),
        ("image,positive\na.jpg,cat\n,dog\n", "row 2: no image"),
        ("image,positive\na.jpg,cat,dog\n", "cannot be read"),
        ("image,cat\na.jpg,maybe\n", "row 1, column 'cat': 'maybe' is no label"),
        ("image\na.jpg\n", "neither a column 'positive' nor a column a class"),
        ("image,image,positive\na.jpg,b.jpg,cat\n", "column 'image' twice"),
        ("image,split,positive\na.jpg,a/b,cat\n", "cannot be the name of a split"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        load(write(tmp_path / "t.csv", text))


def test_files_that_are_not_there_or_no_tables(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no file at"):
        load(tmp_path / "none.csv")
    with pytest.raises(UserError, match="unknown kind of table"):
        load(write(tmp_path / "t.xlsx", "x"))
    with pytest.raises(UserError, match="cannot be read"):
        load(write(tmp_path / "t.parquet", "image"))


def test_the_same_image_twice_is_refused(tmp_path: Path) -> None:
    from sharding.records import check_source

    path = write(tmp_path / "t.csv", "image,split,positive\na.jpg,train,cat\na.jpg,test,cat\n")
    with pytest.raises(UserError, match="'a' in train and test"):
        check_source(load(path))


class _Photos(BaseHTTPRequestHandler):
    """Serves photo-N.jpg; every address fails the first time it is asked for; what has no number is not there."""

    asked: ClassVar[Counter[str]] = Counter()

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        self.asked[self.path] += 1
        found = self.path.startswith("/photo-")
        status = 404 if not found else 503 if self.asked[self.path] == 1 else 200
        body = jpeg(int(self.path[7:-4])) if status == 200 else b"sorry"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def test_images_come_from_urls_and_from_the_folder(tmp_path: Path) -> None:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Photos)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    base = f"http://127.0.0.1:{server.server_address[1]}"
    (tmp_path / "near.jpg").write_bytes(jpeg(7))
    rows = [f"a,{base}/photo-1.jpg,cat", "b,near.jpg,cat", f"c,{base}/gone.jpg,dog", f"d,{base}/photo-2.jpg,dog"]
    table = write(tmp_path / "t.csv", "\n".join(["name,image,positive", *rows]))
    info = build_dataset(
        "table", str(tmp_path / "out"), {"source": str(table), "id_column": "name"}, max_rejected=0.5
    )
    server.shutdown()
    server.server_close()

    index = read_split(str(tmp_path / "out"), "train")
    with ImageReader(index) as reader:
        held = {index.sample_id(i): reader.read(i) for i in range(len(index))}
    assert held == {"a": jpeg(1), "b": jpeg(7), "d": jpeg(2)}
    assert info.splits["train"].rejected == 1
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert [(r["sample_id"], r["reason"]) for r in rejected] == [("c", "not found")]
    assert _Photos.asked == {"/photo-1.jpg": 2, "/photo-2.jpg": 2, "/gone.jpg": 1}
