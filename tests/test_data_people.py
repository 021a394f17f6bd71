"""Ages from a table in a raw tree, and what they change: the splits, where they are known."""

import hashlib

import numpy as np
import pandas as pd
import pytest
import xlwt

from uad.core.errors import DataError
from uad.core.files import write_tsv
from uad.data.layouts import demographics_file, listing_digest
from uad.data.people import add_ages
from uad.splits import cross_dataset, intra_dataset, stratification

#: Rows as in the table of IXI: number, sex, age; 16 twice, 13 without an age, 99 without scans.
IXI = [(2, 1, 35.80014), (12, 2, 38.78), (13, 1, None), (16, 2, 55.17), (16, 2, 55.2), (99, 1, 4)]
AGED = {"IXI002-Guys-0828": 35.8, "IXI012-HH-1211": 38.78, "IXI016-Guys-0697": 55.17}


def write_xls(path, rows, head=("IXI_ID", "SEX_ID (1=m, 2=f)", "AGE"), before=("Codes",)):
    """A workbook with other sheets before the table."""
    book = xlwt.Workbook()
    for name in before:
        book.add_sheet(name).write(0, 0, "1=m, 2=f")
    sheet = book.add_sheet("Table")
    for r, row in enumerate([head, *rows]):
        for c, value in enumerate(row):
            if value is not None:
                sheet.write(r, c, value)
    book.save(str(path))
    return path


def write_text(path, *lines):
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def ixi_table(*names, modalities=("T1", "T2")):
    names = names or (*AGED, "IXI013-HH-1212", "IXI017-Guys-0698")
    rows = [
        {
            "subject": name.replace("-", ""),
            "name": name,
            "site": name.split("-")[1],
            "modality": modality,
            "image": f"{name}-{modality}.nii.gz",
            "lesion": "",
        }
        for name in names
        for modality in modalities
    ]
    return pd.DataFrame(rows)


def known(table):
    return table.dropna().drop_duplicates("name").set_index("name")["age"].to_dict()


# --- which file, and what it may look like


def test_the_published_workbook_of_ixi_is_read_by_the_number_of_the_subject(tmp_path):
    write_xls(tmp_path / "IXI.xls", IXI)
    table, facts = add_ages(ixi_table(), "ixi", tmp_path)
    assert known(table) == AGED
    assert list(table.columns)[:4] == ["subject", "name", "site", "age"]
    assert table["age"].isna().sum() == 4  # two scans each of 13, no age, and 17, not listed
    assert facts == {
        "file": str(tmp_path / "IXI.xls"), "known": 3, "unknown": 2, "contradicting": []
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("IXI.csv", ["IXI_ID,SEX,AGE", "2,1,35.80", "12.0,2,38.78", "13,1,", ",,", "016,2,55.17"]),
        ("IXI.csv", ["\ufeffIXI_ID;SEX (1=m, 2=f);AGE", "2;1;35,8", "12;2;38,78", "16;2;55,17"]),
        ("IXI.tsv", ["ixi_id\tage", "2\t35.8", "12\t38.78", "13\tn/a", "16\t55.17"]),
        ("participants.tsv", ["participant_id\tage\tsex", "sub-IXI002Guys0828\t35.8\tM",
                              "IXI012-HH-1211\t38.78\tn/a", "sub-IXI016Guys0697\t55.17\tF"]),
    ],
    ids=["csv", "csv of a spreadsheet with decimal commas", "tsv", "BIDS"],
)  # fmt: skip
def test_the_same_saved_as_text_gives_the_same_ages(tmp_path, name, lines):
    write_text(tmp_path / name, *lines)
    assert known(add_ages(ixi_table(), "ixi", tmp_path)[0]) == AGED


@pytest.mark.parametrize(
    ("layout", "names", "listed"),
    [
        ("mslub", ["patient01", "patient02"], ["sub-patient01\t37", "sub-patient02\tn/a"]),
        ("brats21", ["BraTS2021_00000", "BraTS2021_00002"], ["sub-BraTS202100000\t37"]),
    ],
)
def test_any_data_set_may_have_the_table_of_bids(tmp_path, layout, names, listed):
    write_text(tmp_path / "participants.tsv", "participant_id\tage", *listed)
    participants = pd.DataFrame({"subject": names, "name": names, "site": layout})
    assert known(add_ages(participants, layout, tmp_path)[0]) == {names[0]: 37.0}


def test_a_table_of_ones_own_goes_before_the_published_one(tmp_path):
    write_xls(tmp_path / "IXI.xls", IXI)
    own = write_text(tmp_path / "participants.tsv", "participant_id\tage", "sub-IXI012HH1211\t89+")
    assert known(add_ages(ixi_table(), "ixi", tmp_path)[0]) == {"IXI012-HH-1211": 89.0}
    assert demographics_file("ixi", tmp_path) == own
    own.unlink()
    assert demographics_file("mslub", tmp_path) is None  # IXI's table is IXI's only


def test_without_ages_a_table_stays_as_it_is(tmp_path):
    table = ixi_table()
    assert add_ages(table, "ixi", tmp_path) == (table, {"file": None})
    write_text(tmp_path / "participants.tsv", "participant_id\tsex", "sub-IXI012HH1211\tM")
    found, facts = add_ages(table, "ixi", tmp_path)
    assert found is table and facts["known"] == 0
    write_text(tmp_path / "participants.tsv", "participant_id\tage", "sub-IXI012HH1211\tn/a")
    assert add_ages(table, "ixi", tmp_path)[0] is table


def test_rows_that_contradict_each_other_leave_the_age_unknown_and_are_named(tmp_path):
    write_xls(tmp_path / "IXI.xls", [(2, 1, 30), (2, 1, 52.0), (2, 1, None), (12, 2, 38)])
    table, facts = add_ages(ixi_table(), "ixi", tmp_path)
    assert known(table) == {"IXI012-HH-1211": 38.0}
    assert facts["contradicting"] == ["IXI002-Guys-0828"]


# --- files that cannot be used


@pytest.mark.parametrize(
    ("name", "lines", "message"),
    [
        ("IXI.csv", ["ID,AGE", "2,30"], r"IXI\.csv: no column IXI_ID and AGE in its first row"),
        ("IXI.csv", [""], "no column IXI_ID and AGE"),
        ("IXI.csv", ["IXI_ID,AGE", "2,30", "12,130"], r"row 3 \(IXI012\): '130' is no age"),
        ("IXI.csv", ["IXI_ID,AGE", "2,young"], r"row 2 \(IXI002\): 'young' is no age"),
        ("IXI.csv", ["IXI_ID,AGE", ",30"], "row 2: '' names no subject.*such as 2 for IXI002"),
        ("IXI.csv", ["IXI_ID,AGE", "Guys-0828,30"], "'Guys-0828' names no subject"),
        ("IXI.csv", ["IXI_ID,AGE", "600,30"], r"none of its 1 subjects \(such as IXI600\).*IXI002"),
        ("participants.tsv", ["participant_id,age", "sub-a,3"], "no column participant_id"),
        ("participants.tsv", ["participant_id\tage"], r"none of its 0 subjects.*sub-IXI002G"),
    ],
)  # fmt: skip
def test_a_malformed_table_is_refused_with_its_name_and_row(tmp_path, name, lines, message):
    write_text(tmp_path / name, *lines)
    with pytest.raises(DataError, match=message) as refused:
        add_ages(ixi_table(), "ixi", tmp_path)
    assert str(tmp_path / name) in str(refused.value)


@pytest.mark.parametrize("content", [b"<html>Not found</html>", b"PK\x03\x04" + bytes(200), b""])
def test_a_damaged_workbook_is_refused_with_the_way_out(tmp_path, content):
    (tmp_path / "IXI.xls").write_bytes(content)
    with pytest.raises(DataError, match=r"IXI\.xls: cannot be read.*save it as IXI\.csv"):
        add_ages(ixi_table(), "ixi", tmp_path)


def test_an_error_in_a_cell_of_a_workbook_is_no_age(tmp_path):
    book = xlwt.Workbook()
    sheet = book.add_sheet("Table")
    for column, name in enumerate(("IXI_ID", "AGE")):
        sheet.write(0, column, name)
    sheet.write(1, 0, 2)
    sheet.row(1).set_cell_error(1, 0x2A)  # how the format stores #N/A
    book.save(str(tmp_path / "IXI.xls"))
    with pytest.raises(DataError, match=r"row 2 \(IXI002\): '#N/A' is no age"):
        add_ages(ixi_table(), "ixi", tmp_path)


# --- what an addition of ages changes


def test_a_table_or_scan_that_is_added_or_edited_is_seen_by_the_index(tmp_path):
    (tmp_path / "IXI-T2").mkdir()
    (tmp_path / "IXI-T2/IXI002-Guys-0828-T2.nii.gz").touch()
    seen = [listing_digest(tmp_path)]
    write_text(tmp_path / "notes.csv", "of no interest")
    assert listing_digest(tmp_path) == seen[0]
    for lines in (["IXI_ID,AGE", "2,30"], ["IXI_ID,AGE", "2,31"]):
        write_text(tmp_path / "IXI.csv", *lines)
        seen.append(listing_digest(tmp_path))
    (tmp_path / "IXI-T2/IXI002-Guys-0828-T2.nii.gz").write_bytes(b"mended")
    assert len({*seen, listing_digest(tmp_path)}) == 4


def people():
    """60 IXI subjects of three sites, as an index without ages gives them, and 30 patients."""
    sites = ["Guys", "HH", "IOP"]
    sites = [sites[i % 7 % 3] for i in range(60)]
    brats = [f"BraTS2021_{i:05d}" for i in range(30)]
    patients = pd.DataFrame({"subject": [n.replace("_", "") for n in brats], "name": brats})
    table = ixi_table(*(f"IXI{i:03d}-{s}-{i:04d}" for i, s in enumerate(sites)), modalities=["T2"])
    return table, patients.assign(site="brats21")


def splits(healthy, patients):
    sizes = {"healthy_validation": 4, "healthy_test": 9, "unhealthy_validation": {"brats21": 5}}
    tests = {"brats21": patients}
    for fold in range(3):
        yield cross_dataset(("ixi", healthy), tests, fold, 3, seed=42, **sizes)
        yield intra_dataset("ixi", healthy, fold, 5, seed=42)


def test_splits_without_ages_are_those_from_before_ages_were_read(tmp_path):
    healthy, patients = people()
    healthy, _ = add_ages(healthy, "ixi", tmp_path)
    digest = hashlib.sha256()
    for split in splits(healthy, patients):
        write_tsv(tmp_path / "s.tsv", split)
        digest.update((tmp_path / "s.tsv").read_bytes())
    assert digest.hexdigest()[:16] == "583658fff2050fae"


def test_with_ages_every_set_has_the_mix_of_site_and_age_and_the_record_says_so(tmp_path):
    healthy, patients = people()
    # half of each site is old; every sixth is of unknown age
    ages = {i: 70 if i // 3 % 2 else 30 for i in range(60) if i % 6}
    write_xls(tmp_path / "IXI.xls", [(i, 1, age) for i, age in ages.items()])
    aged, _ = add_ages(healthy, "ixi", tmp_path)
    record = stratification(aged)
    assert record["by"] == ["site", "age"]
    assert sum(record["groups"].values()) == 60 and "HH, age unknown" in record["groups"]
    assert stratification(healthy)["by"] == ["site"]
    assert stratification(patients) == {"by": [], "groups": {"brats21": 30}}
    old = np.array([ages.get(i) == 70 for i in range(60)])
    before = list(splits(healthy, patients))
    for one, other in zip(splits(aged, patients), before, strict=True):
        assert one["role"].value_counts().equals(other["role"].value_counts())
        train = one.query("dataset == 'ixi' and role == 'train'")["name"]
        member = healthy["name"].isin(train).to_numpy()
        assert abs(old[member].mean() - old.mean()) < 0.1
    # the patients, who have no ages, keep their split
    for one, other in zip(splits(aged, patients), before, strict=True):
        pd.testing.assert_frame_equal(
            one.query("dataset == 'brats21'"), other.query("dataset == 'brats21'")
        )
