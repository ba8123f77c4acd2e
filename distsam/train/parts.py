"""Which word of a config means which code: every part of every seam is one line here.

A newcomer registers with one call, from anywhere, before the config is read:
`ASCENTS.add(Part("mine", MyKeys, build_mine))`. What `build` is given stands at its seam.
"""

from functools import partial

from distsam.train import classification_parts as classification
from distsam.train import completion_auto, completion_search
from distsam.train import completion_parts as completion
from distsam.train import engine_parts as engines
from distsam.train import optim_parts as optim
from distsam.train import sharding_parts as sharding
from distsam.train import target_parts as target
from distsam.train import tracker_parts as trackers
from distsam.train.seams import AUTO, BasePart, EnginePart, Part, Seam, SectionForm, SumSeam, TaskPart, TrackerPart

# build(config, context) -> Task
TASKS: Seam[TaskPart] = Seam("task", "kind")
# build(data section) -> Entries
SOURCES: Seam[Part] = Seam("data", "source")
# build(network section, shape of the data) -> NetworkSpec
FORMATS: Seam[Part] = Seam("network", "format")
# build(data section) -> Labelled
CLASS_SOURCES: Seam[Part] = Seam("data", "source")
# build(model section, shape of an input, number of classes) -> nn.Module
MODELS: Seam[Part] = Seam("model", "kind")
# build(optim section, parameters) -> torch Optimizer; of one that solves: build(optim section, model, task)
BASES: Seam[BasePart] = Seam("optim", "base")
# build(optim section, optimizer inside, networks) -> Wrapper
RESCALES: Seam[Part] = Seam("optim", "method")
# build(optim section, optimizer inside, model) -> Wrapper
ASCENTS: Seam[Part] = Seam("optim", "method")
# build(sharding section) -> Plan
PLANS: Seam[Part] = Seam("sharding", "plan")
# build(sharding section, plan of the other ranks, bounds of the rows or None) -> Plan
ROUTES: Seam[Part] = Seam("sharding", "plan")
# build(sharding section, plan of the other ranks) -> Plan
SPLITS: Seam[Part] = Seam("sharding", "plan")
# build(config, model, optimizer, autocast=, clip_norm=, schedules=) -> Engine
ENGINES: Seam[EnginePart] = Seam("engine", "kind")
# The word names a section. build(that section, run folder, config as a dict, step to go on from) -> Tracker or None
TRACKERS: Seam[TrackerPart] = Seam("", "")

METHODS = SumSeam("optim", "method", (ASCENTS, RESCALES), ("ascends", "rescales"), "sam+das", alone="base")
PINNED = Part("file", sharding.PinnedKeys, sharding.build_pinned)
PLACEMENTS = SumSeam(
    "sharding",
    "plan",
    (PLANS, ROUTES, SPLITS),
    ("places copies", "divides rows", "cuts bonds"),
    "fsdp+bond",
    alone=AUTO,
    of_file=(".json", PINNED),
)

for source in ("covid19_serology", "il2", "kinetic", "indian_pines"):
    SOURCES.add(Part(source, completion.InstalledKeys, completion.build_installed))
SOURCES.add(Part("file", completion.FileKeys, completion.build_file))
SOURCES.add(Part("table", completion.TableKeys, completion.build_table))
SOURCES.add(Part("lowrank", completion.LowrankKeys, completion.build_lowrank))

FORMATS.add(Part("cp", completion.CPKeys, completion.build_cp))
FORMATS.add(Part("tucker", completion.TuckerKeys, completion.build_tucker))
FORMATS.add(Part("tt", completion.BondKeys, completion.build_tt))
FORMATS.add(Part("tr", completion.BondKeys, completion.build_tr))
FORMATS.add(Part("einsum", completion.EinsumKeys, completion.build_einsum))

BASES.add(BasePart("sgd", optim.SGDKeys, optim.build_sgd))
BASES.add(BasePart("adam", optim.AdamKeys, optim.build_adam))
BASES.add(BasePart("adamw", optim.AdamKeys, optim.build_adamw))
BASES.add(
    BasePart("als", optim.ALSKeys, optim.build_als, solves=True, check=partial(optim.check_als, ASCENTS, RESCALES))
)

ASCENTS.add(Part("sam", optim.SAMKeys, optim.build_sam))

RESCALES.add(Part("das", optim.DASKeys, optim.build_das))
RESCALES.add(Part("nbar", optim.RescaleKeys, optim.build_nbar))
RESCALES.add(Part("obar", optim.RescaleKeys, optim.build_obar))

PLANS.add(Part("replicate", sharding.ReplicateKeys, sharding.build_replicate))
PLANS.add(Part("fsdp", sharding.FsdpKeys, sharding.build_fsdp))
ROUTES.add(Part("mode", sharding.ModeKeys, sharding.build_mode))
SPLITS.add(Part("bond", sharding.BondKeys, sharding.build_bond))

ENGINES.add(EnginePart("native", engines.NativeKeys, engines.build_native))
ENGINES.add(
    EnginePart(
        "deepspeed",
        engines.DeepSpeedKeys,
        engines.build_deepspeed,
        plan=engines.plan_of_deepspeed,
        check=engines.check_deepspeed,
        prepare=engines.prepare_deepspeed,
        describe=engines.describe_deepspeed,
    )
)

TRACKERS.add(TrackerPart("wandb", trackers.WandbKeys, trackers.build_wandb))
TRACKERS.add(
    TrackerPart(
        "tensorboard", trackers.TensorboardKeys, trackers.build_tensorboard, prepare=trackers.prepare_tensorboard
    )
)

TASKS.add(
    TaskPart(
        "completion",
        completion.CompletionKeys,
        partial(completion.build_task, SOURCES, FORMATS),
        sections=(
            SectionForm("data", completion.DataKeys, (SOURCES,)),
            SectionForm("network", completion.NetworkKeys, (FORMATS,)),
        ),
        adds={"train": completion.CompletionTrainKeys},
        check=completion.check_task,
        origin=completion.origin,
        arguments={"batch_size": "train.batch_size", "loss": "train.loss", "accumulate": "train.accumulate"},
        arguments_section="network",
        search=completion_search.SEARCH,
        settles=completion_auto.KEYS,
        settle=partial(completion_auto.settle, FORMATS),
        refit=completion.refit_keys,
        is_routable=completion.is_routable,
        planned=completion.planned_keys,
    )
)
CLASS_SOURCES.add(Part("npz", classification.NpzKeys, classification.build_npz))
CLASS_SOURCES.add(Part("digits", completion.InstalledKeys, classification.build_digits))
CLASS_SOURCES.add(Part("indian_pines", completion.InstalledKeys, classification.build_indian_pines))
CLASS_SOURCES.add(Part("text", classification.TextKeys, classification.build_text))
CLASS_SOURCES.add(Part("target", target.TargetKeys, classification.build_target_data))

MODELS.add(Part("mlp", classification.MLPKeys, classification.build_mlp))
MODELS.add(Part("resnet20", classification.ResNetKeys, classification.build_resnet))
MODELS.add(Part("resnet32", classification.ResNetKeys, classification.build_resnet))
MODELS.add(Part("transformer", classification.TransformerKeys, classification.build_transformer))
MODELS.add(Part("pretrained", classification.PretrainedKeys, classification.build_pretrained))
MODELS.add(Part("target", target.TargetKeys, classification.build_target_model))

TASKS.add(
    TaskPart(
        "classification",
        classification.ClassificationKeys,
        partial(classification.build_task, CLASS_SOURCES, MODELS),
        sections=(
            SectionForm("data", classification.DataKeys, (CLASS_SOURCES,)),
            SectionForm("model", classification.ModelKeys, (MODELS,)),
        ),
        adds={"train": classification.ClassificationTrainKeys},
        check=classification.check_task,
        origin=classification.origin,
        arguments={
            "batch_size": "train.batch_size",
            "accumulate": "train.accumulate",
            "heldout": "data.heldout",
            "model": "model.kind",
        },
        planned=classification.planned_keys,
    )
)
TASKS.add(
    TaskPart(
        "target",
        target.TargetKeys,
        target.build_task,
        origin=target.origin,
        arguments={"accumulate": "train.accumulate"},
    )
)
