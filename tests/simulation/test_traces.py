"""The readers of traces: what they take, and how they say what is wrong and where."""

import json

import msgspec
import pytest

from exo.gpu.execution.journal import encode_record
from exo.gpu.simulation.study import Kind, read_study
from exo.gpu.simulation.traces.clusters import grown, read_cluster
from exo.gpu.simulation.traces.gavel import read_jobs, read_speeds
from exo.gpu.simulation.traces.journal import read_journal
from exo.gpu.simulation.traces.openb import read_nodes, read_pods
from exo.gpu.simulation.traces.philly import read_philly
from exo.gpu.simulation.traces.plain import read_plain
from exo.gpu.vocabulary.errors import InvalidValue, TraceError
from exo.gpu.vocabulary.journal import ChunkEnded, ItemBegun, ItemEnded, JobBegun, JobKind

NODES = "sn,cpu_milli,memory_mib,gpu,model\nn0,64000,1024,2,P100\n"
PODS = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\n"
PHILLY = "timestamp,duration,num_gpus,gpu_time,cluster\n"
PLAIN = "arrived_seconds,run_seconds,gpus,memory,share,host_cpus\n"


def written(tmp_path, text, name="trace.csv"):
    path = tmp_path / name
    path.write_text(text)
    return path


def test_openb_is_read_as_it_is_published(tmp_path):
    """Rule: amounts in base units, models apart at the bar; a list without models asks for none."""
    (node,) = read_nodes(written(tmp_path, NODES))
    assert (node.name, node.cpu_milli, node.memory_bytes, node.gpus) == ("n0", 64000, 2**30, 2)
    pods = read_pods(written(tmp_path, PODS + "p,1000,512,1,460,T4|P100\nq,1,1,0,0,\n"))
    assert pods[0].demand.models == ("T4", "P100")
    assert pods[0].demand.gpu_milli == 460
    assert pods[1].demand.gpus == 0
    short = PODS.replace(",gpu_spec", "")
    assert read_pods(written(tmp_path, short + "p,1000,512,2,1000\n"))[0].demand.models == ()


@pytest.mark.parametrize(
    ("read", "text", "where"),
    [
        (read_nodes, "", "line 1: the file is empty"),
        (read_nodes, NODES.replace(",model", ""), "line 1: there is no column model"),
        (read_nodes, NODES.partition("\n")[0] + "\n", "there is no machine"),
        (read_nodes, NODES + "n1,many,1,1,T4\n", "line 3, column cpu_milli: 'many'"),
        (read_nodes, NODES + ",1,1,1,T4\n", "line 3, column sn"),
        (read_pods, PODS + "p,1,1,1,1200,\n", "line 2, column gpu_milli: '1200' is not within"),
        (read_pods, PODS + "p,1,1,1,0,\n", "line 2, column gpu_milli"),
        (read_pods, PODS + "p,1,-1,0,0,\n", "line 2, column memory_mib: '-1'"),
        (read_pods, PODS + "p,1,1\n", "line 2, column num_gpu: 3 cells under 6 columns"),
        (read_philly, "timestamp,duration\n", "line 1: there is no column num_gpus"),
        (read_philly, PHILLY + "soon,1,1,1,c\n", "line 2, column timestamp: 'soon'"),
        (read_philly, PHILLY + "2017-10-09 07:01:55,nan,1,1,c\n", "line 2, column duration: 'nan'"),
        (read_philly, PHILLY + "2017-10-09 07:01:55,1,0,1,c\n", "line 2, column num_gpus: '0'"),
        (read_plain, "run_seconds\n", "line 1: there is no column arrived_seconds"),
        (read_plain, PLAIN + "0,1,1,much,,\n", "line 2, column memory: 'much' is not a size"),
        (read_plain, PLAIN + "0,1,1,,2,\n", "line 2, column share: '2' is not above 0"),
        (read_plain, PLAIN + "0,x,1,,,\n", "line 2, column run_seconds: 'x' is not a number"),
    ],
)
def test_a_fault_is_told_with_file_line_and_column(tmp_path, read, text, where):
    """Rule: whoever wrote the file finds the place at once."""
    path = written(tmp_path, text)
    with pytest.raises(TraceError) as caught:
        read(path)
    assert str(caught.value).startswith(str(path))
    assert where in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path):
    """Rule: a missing file, a folder and bytes that are no text are told alike."""
    for path in (tmp_path / "none.csv", tmp_path):
        for read in (read_nodes, read_journal, read_speeds, read_cluster):
            with pytest.raises(TraceError, match=r"cannot be read|script|no journal"):
                read(path)
    path = tmp_path / "bytes.csv"
    path.write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(TraceError, match="cannot be read"):
        read_nodes(path)


def test_philly_counts_from_its_first_arrival(tmp_path):
    """Rule: in order of arrival, from 0 seconds, grouped by cluster."""
    text = PHILLY + "2017-10-09 07:02:00,5,2,10,b\n2017-10-09 07:01:00,7,1,7,a\n"
    jobs = read_philly(written(tmp_path, text))
    assert [(job.arrived_seconds, job.run_seconds, job.gpus, job.group) for job in jobs] == [
        (0.0, 7.0, 1, "a"),
        (60.0, 5.0, 2, "b"),
    ]


def gavel_line(kind="ResNet-18 (batch size 16)", steps="1000", gpus="1"):
    return "\t".join((kind, "python3 x", "d", "-n", "1", steps, gpus, "1", "-1.0", "0"))


def test_gavel_gives_the_seconds_on_each_gpu(tmp_path):
    """Rule: steps over measured speed; a speed of 0 means that it does not fit."""
    key = "('ResNet-18 (batch size 16)', 1)"
    table = {"k80": {key: {"null": 2.0}}, "v100": {key: {"null": 0.0}}, "p100": {}}
    speeds = read_speeds(written(tmp_path, json.dumps(table), "speeds.json"))
    (job,) = read_jobs(written(tmp_path, gavel_line() + "\n"), speeds, reference="v100")
    assert job.seconds_by_model == {"k80": 500.0}
    assert job.run_seconds == 500.0


@pytest.mark.parametrize(
    ("line", "where"),
    [
        ("a\tb", "line 1, column working directory: 2 cells for 10 columns"),
        (gavel_line(steps="many"), "line 1, column total steps: 'many'"),
        (gavel_line(gpus="0"), "line 1, column scale factor: '0'"),
        (gavel_line(kind="Unheard of"), "line 1, column job type: no speed is known"),
    ],
)
def test_gavels_faults_have_their_place(tmp_path, line, where):
    """Rule: the columns of a table without a header are named all the same."""
    with pytest.raises(TraceError, match=where.replace("(", r"\(")):
        read_jobs(written(tmp_path, line + "\n"), {"k80": {}}, reference="k80")


@pytest.mark.parametrize(
    "table", ["[]", '{"k80": 1}', '{"k80": {"x": {}}}', '{"k80": {"(\'a\', 1)": {}}}']
)
def test_a_table_of_speeds_that_is_none_is_refused(tmp_path, table):
    """Rule: the entry is named."""
    with pytest.raises(TraceError, match=r"speeds\.json"):
        read_speeds(written(tmp_path, table, "speeds.json"))


def journal_of(*records, tail=b""):
    return b"".join(map(encode_record, records)) + tail


JOB = JobBegun(
    job_id="id",
    kind=JobKind.COMMANDS,
    templates={"": "python infer.py {}"},
    started_at=100.0,
    pid=7,
    request={"memory_bytes": 1024, "host_cpus": 2},
)
FAILED = ItemEnded(1, "failed", "exit", "cuda:0", 0, 1, False, 100.0, 109.0)


def test_our_journal_is_a_workload(tmp_path):
    """Rule: the last try of an item counts, a chunk shares its time, a torn line is left out."""
    path = tmp_path / "journal"
    path.write_bytes(
        journal_of(
            JOB,
            ItemBegun(1, 100.0),
            FAILED,
            ItemEnded(1, "succeeded", "", "cuda:0", 0, 2, True, 110.0, 114.0),
            ChunkEnded(((2, 3),), (), "cuda:0", 0, 100.0, 106.0),
            ItemBegun(4, 115.0),
            tail=b"deadbeef [torn",
        )
    )
    jobs = read_journal(path)
    assert [(job.name, job.run_seconds) for job in jobs] == [
        ("id item 1", 4.0),
        ("id item 2", 3.0),
        ("id item 3", 3.0),
    ]
    assert {(job.memory_bytes, job.host_cpus, job.group) for job in jobs} == {
        (1024, 2, "python infer.py {}")
    }


def test_a_folder_of_journals_is_a_week_of_work(tmp_path):
    """Rule: each job comes when it came, counted from the first, whatever the files are called."""
    later = msgspec.structs.replace(JOB, job_id="later", started_at=160.0, name="train")
    for name, begun in (("a", later), ("b", JOB)):
        (tmp_path / f"{name}.journal").write_bytes(journal_of(begun, FAILED))
    assert [(one.name, one.arrived_seconds, one.group) for one in read_journal(tmp_path)] == [
        ("id item 1", 0.0, "python infer.py {}"),
        ("later item 1", 60.0, "train"),
    ]
    with pytest.raises(TraceError, match="there is no journal in it"):
        read_journal(tmp_path.parent)


@pytest.mark.parametrize(
    ("content", "where"),
    [
        (b"", "line 1: no job begins here"),
        (journal_of(FAILED), "line 1: no job begins here"),
        (journal_of(JOB, tail=b"00000000 [1]\n") + journal_of(FAILED), "line 2, column 1"),
        (
            journal_of(msgspec.structs.replace(JOB, version=99)),
            "line 1, column version: 99 is of a later release",
        ),
        (
            journal_of(msgspec.structs.replace(JOB, request={"memory_bytes": -1})),
            "line 1, column request: ",
        ),
    ],
)
def test_a_damaged_journal_is_told_by_its_line(tmp_path, content, where):
    """Rule: what is damaged is not guessed."""
    path = tmp_path / "journal"
    path.write_bytes(content)
    with pytest.raises(TraceError, match=where):
        read_journal(path)


def cluster(tmp_path, count=2):
    devices = [
        {
            "device_id": f"cuda:{n}",
            "name": "RTX",
            "vendor": "v",
            "backend": "fake",
            "runtime": "cuda",
            "hardware_id": f"G{n}",
            "memory_bytes": 2**34,
            "sample": {"memory_used_bytes": 0, "memory_total_bytes": 2**34},
        }
        for n in range(count)
    ]
    return written(tmp_path, json.dumps({"devices": devices}), "cluster.json")


def test_a_cluster_of_devices_can_grow(tmp_path):
    """Rule: more devices like one of it, each with an identity of its own."""
    states = grown(read_cluster(cluster(tmp_path)), "RTX", 2)
    ids = [state.device.device_id for state in states]
    assert ids == ["cuda:0", "cuda:1", "cuda:0+1", "cuda:0+2"]
    assert len({state.device.memory_pool for state in states}) == 4
    assert len({state.device.hardware_id for state in states}) == 4
    with pytest.raises(InvalidValue, match="RTX"):
        grown(states, "H100", 1)


def test_the_form_is_told_by_the_files(tmp_path):
    """Rule: pods go with machines, jobs with a number of GPUs or with devices, a journal too."""
    pods, nodes = written(tmp_path, PODS + "p,1,1,0,0,\n", "p"), written(tmp_path, NODES, "n")
    plain = written(tmp_path, PLAIN + "0,1,1,,,\n", "j")
    journal = tmp_path / "journal"
    journal.write_bytes(journal_of(JOB))
    assert read_study(str(nodes), pods).kind is Kind.PLACEMENT
    assert read_study("3", plain).kind is Kind.COUNT
    assert read_study(str(cluster(tmp_path)), plain).kind is Kind.DEVICES
    assert read_study("3", journal).jobs == ()
    journal.rename(tmp_path / "one.journal")
    assert read_study("3", tmp_path).kind is Kind.COUNT
    with pytest.raises(TraceError, match="need a table of machines"):
        read_study("3", pods)
    with pytest.raises(TraceError, match="cannot be read"):
        read_study("3", tmp_path / "none")
