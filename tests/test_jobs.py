"""Pods of deploy/ that end: training, export, the plan for a GPU, as their programs read them."""

import re
from pathlib import Path

import pytest
from kustomize import (
    DEPLOY,
    KUBERNETES,
    NEWEST,
    OLDEST,
    Manifests,
    check_closed,
    check_pods,
    check_resources,
    check_schema,
    check_volumes,
    rendered,
    shown,
)

import packshot
from exporters.command_line import parse_options as export_options

FOLDERS = {
    "claims": DEPLOY / "training" / "claims",
    "training-store": DEPLOY / "training" / "store",
    "train": DEPLOY / "training" / "job",
    "trainjob": DEPLOY / "training" / "trainjob",
    "export": DEPLOY / "training" / "export",
    "build-plan": KUBERNETES / "overlays" / "gpu" / "build-plan",
    "store": KUBERNETES / "store",
}
GPU = "nvidia.com/gpu"


@pytest.fixture(scope="module", params=FOLDERS)
def job(request) -> Manifests:
    return rendered(FOLDERS[request.param])


def only_container(folder: str) -> tuple[dict, dict]:
    """(pod's spec, container)."""
    [found] = rendered(FOLDERS[folder]).containers()
    return found


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
def test_kubernetes_knows_every_field(job, version):
    for one in job:
        check_schema(one, version)
    check_pods(job, version)


def test_pods_are_closed(job):
    check_closed(job)
    check_volumes(job)
    for pod, container in job.containers():
        check_resources(container)
        assert pod["restartPolicy"] == "Never"
    assert {one["metadata"]["namespace"] for one in job} == {"packshot"}


def test_claims_are_made_by_something(job):
    made = {"packshot-models"}  # of the component models-pvc
    for folder in FOLDERS.values():
        made |= {one["metadata"]["name"] for one in rendered(folder).of("PersistentVolumeClaim")}
    claim = KUBERNETES / "components" / "models-pvc" / "claim.yaml"
    assert "name: packshot-models\n" in claim.read_text()
    for pod, _ in job.containers():
        claims = [volume["persistentVolumeClaim"] for volume in pod["volumes"] if "persistentVolumeClaim" in volume]  # fmt: skip  # noqa: E501
        assert {claim["claimName"] for claim in claims} <= made


@pytest.mark.parametrize("folder", [one for one in FOLDERS if one != "claims"])
def test_who_deletes_a_job_keeps_its_volumes(folder):
    assert not rendered(FOLDERS[folder]).of("PersistentVolumeClaim")


def test_images_are_copied_to_where_the_trainer_reads_them():
    written, read = only_container("training-store"), only_container("train")
    name = rendered(FOLDERS["training-store"]).of("Pod")[0]["metadata"]["name"]
    page = (DEPLOY / "training" / "README.md").read_text()
    for folder in ("/data", "/runs"):
        assert claim_at(folder, *written) == claim_at(folder, *read)
        assert re.search(rf"kubectl -n packshot cp .*\b{name}:{folder}\b", page)
        assert "readOnly" not in mounted(written[1])[folder]


def claim_at(folder: str, pod: dict, container: dict) -> str:
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    claim = volumes[mounted(container)[folder]["name"]]["persistentVolumeClaim"]
    name: str = claim["claimName"]
    return name


@pytest.mark.parametrize("folder", ["train", "trainjob"])
def test_torchrun_and_the_trainer_understand_the_training(folder):
    from torch.distributed.run import get_args_parser

    from trainer.command_line import parse_options

    _, container = only_container(folder)
    program, *words = [*container["command"], *container["args"]]
    assert program == "torchrun"
    given = get_args_parser().parse_args(words)
    assert (given.training_script, given.module) == ("trainer", True)
    assert given.nproc_per_node == ("gpu" if folder == "train" else "1")  # else from PET_...
    options = parse_options(given.training_script_args)
    assert (options.data, options.run) == (Path("/data"), Path("/runs/products"))
    assert options.resume


def test_the_train_job_asks_for_its_runtime():
    manifests = rendered(FOLDERS["trainjob"])
    job = manifests.the("TrainJob", "packshot-train")["spec"]
    runtime = manifests.the("TrainingRuntime", "packshot-train")
    assert job["runtimeRef"]["kind"] == runtime["kind"]
    assert job["runtimeRef"]["name"] == runtime["metadata"]["name"]
    [template] = runtime["spec"]["template"]["spec"]["replicatedJobs"]
    # By these Trainer finds the container that it sets PET_... in.
    assert template["name"] == "node"
    assert template["template"]["metadata"]["labels"] == {
        "trainer.kubeflow.org/trainjob-ancestor-step": "trainer"
    }
    [(_, container)] = manifests.containers()
    assert container["name"] == "node"
    assert job["trainer"]["args"] == container["args"]


def test_both_trainings_have_the_same_pod():
    (job, container), (runtime, node) = only_container("train"), only_container("trainjob")
    differ = {"containers"}
    assert {key: job[key] for key in job.keys() - differ} == {
        key: runtime[key] for key in runtime.keys() - differ
    }
    differ = {"name", "command"}
    assert {key: container[key] for key in container.keys() - differ} == {
        key: node[key] for key in node.keys() - differ
    }


def mounted(container: dict) -> dict[str, dict]:
    return {mount["mountPath"]: mount for mount in container["volumeMounts"]}


def test_loaders_have_shared_memory_and_runs_can_be_written():
    pod, container = only_container("train")
    mounts = mounted(container)
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    assert volumes[mounts["/dev/shm"]["name"]]["emptyDir"]["medium"] == "Memory"
    assert mounts["/data"]["readOnly"]
    assert "readOnly" not in mounts["/runs"]
    assert GPU in container["resources"]["limits"]


def test_an_evicted_training_goes_on():
    spec = rendered(FOLDERS["train"]).the("Job", "packshot-train")["spec"]
    [rule] = spec["podFailurePolicy"]["rules"]
    assert rule["action"] == "Ignore"
    assert rule["onPodConditions"] == [{"type": "DisruptionTarget", "status": "True"}]
    assert spec["podReplacementPolicy"] == "Failed"  # two at a time would wait for one another
    assert spec["template"]["spec"]["terminationGracePeriodSeconds"] > 30  # torchrun's patience


def test_the_overlay_that_the_readme_shows_gives_the_trainer_an_option(tmp_path):
    from trainer.command_line import parse_options

    [manifests] = shown(DEPLOY / "training" / "README.md", tmp_path)
    [(_, container)] = manifests.containers()
    assert container["image"] == f"registry.example.com/shop/packshot-train:{packshot.__version__}"
    assert parse_options(container["args"]).recipe == "last-stage"


def test_the_exporter_understands_the_export():
    _, container = only_container("export")
    assert container["command"] == ["python", "-m", "exporters"]
    options = export_options(container["args"])
    mounts = mounted(container)
    assert "readOnly" not in mounts[str(options.models)]
    assert str(options.run.parent) in mounts
    assert options.engines == ("fp32", "int8")


def test_the_exporter_understands_the_plan():
    _, container = only_container("build-plan")
    assert container["command"] == ["python", "-m", "exporters"]
    options = export_options(container["args"])
    assert options.engines == options.require == ("trt-fp16",)
    assert options.plan.targets == ("this",)
    mounts = mounted(container)
    assert "readOnly" not in mounts[str(options.models)]
    assert str(options.build_logs) in mounts


def test_the_plan_is_built_on_the_gpu_that_serves():
    server = rendered(KUBERNETES / "overlays" / "gpu").server
    pod, container = only_container("build-plan")
    assert pod["nodeSelector"] == server["nodeSelector"]
    assert pod["tolerations"] == server["tolerations"]
    [serves] = server["containers"]
    assert container["resources"]["limits"][GPU] == serves["resources"]["limits"][GPU] == "1"
    assert container["image"] == serves["image"]
