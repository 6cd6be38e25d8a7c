"""hd.report.words: tables in words and few rows, and report pages that keep to it."""

import html
import re

import nbformat
import pytest
from tiny import long_table, write_table

from hd.book import notebooks
from hd.config import InputError
from hd.report import tables, words
from hd.run import metrics
from hd.run.runs import row

MOST_ROWS = 12  # of a table on screen
PAGES = sorted(path for path in (notebooks.BOOK / "report").glob("*.ipynb")
               if path.stem != "claims")  # whose table has a row for each claim


@pytest.mark.parametrize(("name", "said"), [
    ("l2_usage", "fine codes in use, share"),
    ("r2_player_y[source agent]", "own figure's y, R², agent's play"),
    ("dream_error_ball_x[re-encoded], step 15", "ball's x in dreams, median error (RAM units), "
                                                "read from the codes of the truth, step 15"),
    ("tokenizer: f1_overall", "tokenizer: whole state in RAM, F1"),
    ("l0_state_error[sticky 0.25]",
     "coarse code: best guess from the whole state is wrong, share, sticky 0.25"),
    ("f1_agent_localization", "RAM state by linear probes, weighted F1 (agent localization)")])
def test_a_metric_is_called_in_words(name, said):
    assert words.in_words(name) == said


def test_no_metric_of_the_published_tables_is_left_without_words():
    names = {name for folder in (notebooks.ROOT / "results").glob("*/*")
             for path in folder.glob("base*-seed0.csv") for name in
             tables.pd.read_csv(path)["metric"]}
    assert len(names) > 100
    assert [name for name in names if "{" in words.in_words(name)] == []


def test_a_brief_table_has_games_across_and_says_what_stands_in_brackets():
    rows = [row("r2_ball_x", 0.5, game="pong", baseline=0.75),
            row("l0_usage", 0.25, game="all"),
            row("dream_l0_accuracy", 0.1, game="pong", step=1),
            row("dream_l0_accuracy", 0.2, game="pong", step=5)]
    found = words.brief(long_table(rows, stage="tokenizer"),
                        ["l{level}_usage", "r2_ball_x", "dream_l{level}_accuracy"], steps=(5,))
    assert found.columns.tolist() == ["Pong", "all games"]
    assert found["Pong"].to_dict() == {
        "coarse codes in use, share": "", "ball's x, R² (embeddings)": "0.500 (0.750)",
        "dreamed coarse codes that are true, share, step 5": "0.200"}
    of_encoder = words.brief(long_table(rows[:1], stage="encoder"), ["r2_ball_x"])
    assert of_encoder.index.tolist() == ["ball's x, R² (untrained encoder)"]


def test_a_whole_table_has_words_and_the_names_of_results_beside_each_other():
    rows = [row("r2_ball_x", 0.5, game="pong", baseline=0.75),
            row("dream_l0_accuracy", 0.2, game="breakout", step=5)]
    found = words.whole(long_table(rows, stage="tokenizer"))
    assert found.columns.tolist() == ["Pong", "Breakout", "name"]
    assert found.loc["ball's x, R²"].tolist() == ["0.500 (0.750)", "", "r2_ball_x"]
    assert found.loc["dreamed coarse codes that are true, share, step 5"].tolist() == [
        "", "0.200", "dream_l0_accuracy, step 5"]
    some = words.whole(long_table(rows, stage="tokenizer"), ["r2_ball_x"])
    assert some["name"].tolist() == ["r2_ball_x"]


def test_a_table_is_shown_in_brief_and_whole_behind_a_click(tmp_path, monkeypatch, capsys):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    write_table(tmp_path / "quick", [row("diversity", 1.25), row("f1_overall", 0.5)])
    words.show(tmp_path, "quick", "encoder", ["diversity"], optional=["f1_overall", "r2_ball_x"])
    assert "profile quick, variant base, seed 0" in capsys.readouterr().out
    brief, folded = shown
    assert brief.index.tolist() == ["mean distance of frames", "whole state in RAM, F1"]
    assert folded.data.startswith("<details><summary>") and "(2 rows)" in folded.data
    assert "f1_overall" in folded.data, "by the names that results/ has"


def test_a_missing_table_is_a_line_beside_the_chain_and_refused_in_it(tmp_path, capsys):
    words.show(tmp_path, "quick", "transfer", ["transfer_l0_gain"])
    assert "No table of stage transfer" in capsys.readouterr().out
    with pytest.raises(InputError, match="no table of stage encoder"):
        words.show(tmp_path, "quick", "encoder", ["diversity"])


def test_of_others_the_best_known_are_shown_and_all_behind_a_click(monkeypatch):
    shown = []
    monkeypatch.setattr("IPython.display.display", shown.append)
    words.show_anchors("atari100k", ["Pong", "Breakout", "MsPacman"])
    best, folded = shown
    assert {"Random", "Human", "DIAMOND", "BBF"} <= set(best.index)
    assert len(best) < MOST_ROWS < folded.data.count("<tr")
    words.show_anchors("atari100k", ["Pong", "Breakout"], ours={"Pong": 17.5})
    own = shown[2].iloc[0]
    assert (own.name, own["Pong"], own["Breakout"]) == ("this agent", "17.5", "")


# ---- the pages

def on_screen(path):
    """The outputs of a page that no click hides: (kind, text)."""
    for cell in nbformat.read(path, 4).cells:
        if cell.cell_type == "code" and "hide-cell" not in cell.metadata.tags:
            for output in cell.outputs:
                data = output.get("data", {})
                for kind in ("text/html", "text/markdown"):
                    if kind in data:
                        yield kind, re.sub(r"<details>.*?</details>", "", data[kind], flags=re.S)


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_opens_with_a_sentence_and_hides_its_code(path):
    kind, sentence = next(on_screen(path))
    assert kind == "text/markdown" and re.search(r"\d", sentence) and sentence.endswith(".")
    cells = [cell for cell in nbformat.read(path, 4).cells if cell.cell_type == "code"]
    folds = {"hide-input", "remove-input", "hide-cell", "remove-cell"}
    assert all(folds & set(cell.metadata.tags) for cell in cells)
    assert "image/png" in cells[2].outputs[-1].data, "a picture follows"


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_no_table_of_a_page_is_longer_than_a_screen(path):
    lengths = [table.partition("<tbody>")[2].count("<tr") for kind, text in on_screen(path)
               for table in text.split("<table")[1:] if kind == "text/html"]
    assert lengths and max(lengths) <= MOST_ROWS


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_a_page_says_words_where_tables_have_names_of_metrics(path):
    text = " ".join(html.unescape(re.sub(r"<style.*?</style>|<[^>]+>", " ", text, flags=re.S))
                    for kind, text in on_screen(path) if kind == "text/html")
    named = []
    for word in set(re.findall(r"\b[a-z]\w*_\w+", text)):
        try:
            named.append(metrics.key_of(word))
        except InputError:
            continue
    assert len(text) > 100 and named == []
