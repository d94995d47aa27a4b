"""A draft of a YAML of columns, made of a table's header."""

from pathlib import Path

import pytest

from cxr_hvd.errors import DataError, UsageError
from cxr_hvd.study.layout import Split, View
from preprocess.sources import draft
from preprocess.sources.columns import load_columns
from tests.helpers.manifests import NIH_HEADERS, given_labels, read_manifest


def test_a_draft_of_a_plain_table_needs_no_change(tmp_path: Path) -> None:
    header = "PatNr;Exam;Path;Side;View;Set;Edema;Pleural Effusion;PhotometricInterpretation;DOE^JOHN: no\n"
    (tmp_path / "t.csv").write_text(header + "MRN1;7;a.png;left;PA;train;1;0;MONOCHROME1;x\n")
    draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=False)
    (study,) = read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml").studies
    assert (study.patient_id, study.study_id, study.split) == ("MRN1", "MRN1/7", Split.TRAIN)
    assert given_labels(study) == {"Edema": 1, "Pleural Effusion": 0}
    assert study.images[0].view is View.PA and study.images[0].is_negative
    assert "MRN1" not in (tmp_path / "y.yaml").read_text()


def test_a_draft_says_what_it_could_not_guess(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text('"a\nb",x:y,#,"{"\n1,2,3,4\n')
    draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=False)
    assert load_columns(tmp_path / "y.yaml").patient == [draft.MISSING]
    with pytest.raises(DataError, match=r"expected a column 'CHANGE-ME'.*name it in y\.yaml"):
        read_manifest(tmp_path / "t.csv", tmp_path / "y.yaml")
    with pytest.raises(UsageError, match="found one; choose another or add --overwrite"):
        draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=False)
    draft.write_draft(tmp_path / "t.csv", tmp_path / "y.yaml", overwrite=True)


@pytest.mark.parametrize("name", NIH_HEADERS)
def test_a_draft_knows_nih_columns(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text(NIH_HEADERS[name] + "\n")
    (tmp_path / "y.yaml").write_text(draft.build_draft(tmp_path / name, "y.yaml"))
    columns = load_columns(tmp_path / "y.yaml")
    assert columns.patient == ["Patient ID"] and columns.study == ["Patient ID", "Follow-up #"]
    assert (
        columns.images.file == "{Image Index}" and columns.findings and columns.findings.column == "Finding Labels"
    )
    assert columns.view and columns.view.column == "View Position"
    assert columns.age and columns.age.column == ["Patient Age"]
    assert columns.sex and columns.sex.column == [NIH_HEADERS[name].split(",")[5]]
