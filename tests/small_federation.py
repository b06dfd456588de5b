"""A federation without a model: regions that answer by rule, and a control that runs it here.

An update adds `STEP` to every number, so it is known where every round ends, and what a region
measures follows from how many steps an adapter is away from its origin. The messages, the
ServerApp and everything it writes are the real ones.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.proto.node_pb2 import NodeInfo
from flwr.serverapp import Grid

import server.app
from server import conduct
from server.control import NodeRecord, RunStatus
from server.headquarters import init_headquarters
from server.training import Training
from shared import wire, wire_evaluation
from shared.adapter import Adapter, rank_of, schema_hash, within_rank
from shared.audit import read_audit
from shared.errors import FederationError
from simulations.engine import LocalGrid

BASE = "b" * 64
INITIAL: Adapter = {"fusion/gate": torch.tensor([0.0, -1.0]), "text/a": torch.ones(3)}
STEP = 0.125  # sums of it are exact
QUERIES = 120  # of each region, enough for the gate
VARIANCE = 0.0001  # of one query's difference
Reply = Callable[[RecordDict], RecordDict]


class Died(BaseException):
    """Raised by a region's reply: the ServerApp that waits for it is killed."""


class Asked(NamedTuple):
    """One message that a region got."""

    purpose: str  # "describe", or that of a train or evaluate message
    request: Any


def risen(steps: float) -> float:
    """What regions measure by default: better with every round."""
    return 0.5 + 0.05 * steps


class SmallRegion:
    """A region that answers by rule, and remembers what it was asked.

    Args:
        name: what it says and, by default, what its key was admitted as.
        origin: adapters are measured by how far they are from this one.
        base: fingerprint of its base.
        measure: nDCG of an adapter that is so many steps away.
        admitted: name its key was admitted as; "" as in a simulation.
        said: any other field of its description.
    """

    def __init__(
        self,
        name: str,
        origin: Adapter = INITIAL,
        *,
        base: str = BASE,
        measure: Callable[[float], float] = risen,
        admitted: str | None = None,
        **said: Any,
    ) -> None:
        self.name, self.origin, self.measure = name, origin, measure
        self.admitted = name if admitted is None else admitted
        self.asked: list[Asked] = []
        self.spoilt: dict[str, Reply] = {}  # by purpose, what becomes of a sound reply
        counts = dict.fromkeys(("num_products", "num_examples", "num_validation_queries"), 4)
        fields: dict[str, Any] = {
            "region": name,
            "protocol_version": wire.PROTOCOL_VERSION,
            "base_fingerprint": base,
            "schema_hash": schema_hash(origin),
            "rank": rank_of(origin),
            **counts,
            "code_version": "0.1.0",
            "device": "cpu",
            "release": 0,
            "num_gate_queries": QUERIES,
            "verdict": "",
            "verdict_release": 0,
            "verdict_reason": "",
            "in_matrix": False,
            "shares_local": False,
            "named": False,
        }
        self.description = wire.Description(**fields | said)

    @property
    def purposes(self) -> list[str]:
        """Of the messages it got, in order."""
        return [one.purpose for one in self.asked]

    def ndcg(self, adapter: Adapter) -> float:
        return self.measure(steps_from(self.origin, adapter))

    def answer(self, kind: str, content: RecordDict) -> RecordDict:
        asked, reply = self._sound(kind, content)
        self.asked.append(asked)
        return self.spoilt.get(asked.purpose, lambda sound: sound)(reply)

    def _sound(self, kind: str, content: RecordDict) -> tuple[Asked, RecordDict]:
        if kind == wire.DESCRIBE:
            return Asked("describe", content), wire.describe_reply(self.description)
        if kind == "train":
            train = wire.read_train_request(content)
            update = {name: torch.full_like(old, STEP) for name, old in train.adapter.items()}
            reply = wire.train_reply(
                within_rank(update, self.description.rank),
                encoding=train.config.update_encoding,
                num_examples=4,
                loss=1.0,
                seconds=0.0,
            )
            return Asked(train.purpose, train), reply
        request = wire_evaluation.read_evaluate_request(content)
        mine = self.ndcg(request.adapter)
        if request.purpose == wire_evaluation.VALIDATION:
            return Asked(request.purpose, request), evaluation(mine)
        differences = {
            number: wire_evaluation.Difference(QUERIES, mine - self.ndcg(reference), VARIANCE)
            for number, reference in request.references.items()
        }
        reply = wire_evaluation.comparison_reply(
            {"ndcg@10": mine}, differences, num_queries=QUERIES
        )
        return Asked(request.purpose, request), reply


def steps_from(origin: Adapter, adapter: Adapter) -> float:
    """How many steps an adapter is away; the same in every number."""
    name = min(origin)
    return float((adapter[name] - origin[name]).flatten()[0]) / STEP


def evaluation(ndcg: float) -> RecordDict:
    return wire_evaluation.evaluate_reply({"ndcg@10": ndcg}, num_examples=3)


def silent(line: str) -> None:
    """For progress that nobody reads."""


def fails(reply: RecordDict) -> RecordDict:
    raise ValueError("red boots")


class SmallGrid(LocalGrid):
    """Flower's way to small regions, each known by the name its key was admitted as.

    Args:
        regions: node `number + 2` is region `number`.

    Attributes:
        away: names of regions that are not connected now.
    """

    def __init__(self, regions: Sequence[SmallRegion]) -> None:
        super().__init__(_client_app(regions), len(regions), {})
        self.regions, self.away = regions, set[str]()

    def get_nodes(self) -> Iterable[NodeInfo]:
        return [
            NodeInfo(node_id=node, name=region.admitted)
            for node, region in zip(self.get_node_ids(), self.regions, strict=True)
            if region.name not in self.away
        ]


class Deaf(Grid):
    """A grid that must not be used."""

    def __init__(self) -> None:
        pass

    def _asked(self, *arguments: object, **named: object) -> Any:
        raise AssertionError("a region was asked")

    set_run = create_message = get_node_ids = push_messages = _asked
    pull_messages = send_and_receive = get_nodes = _asked
    run = property(_asked)


def _client_app(regions: Sequence[SmallRegion]) -> ClientApp:
    app = ClientApp()

    def answer(message: Message, context: Context) -> Message:
        region = regions[int(context.node_config["partition-id"])]
        return Message(
            region.answer(message.metadata.message_type, message.content), reply_to=message
        )

    app.query("describe")(answer)
    app.train()(answer)
    app.evaluate()(answer)
    return app


class InProcessControl:
    """Flower's control API, for runs that happen in this process.

    A run happens when it is first asked about, which is answered with "running".

    Args:
        make_grid: the regions as they are when a run begins, from its run config.
    """

    def __init__(self, make_grid: Callable[[Mapping[str, Any]], Grid]) -> None:
        self._make_grid = make_grid
        self._ended: dict[int, RunStatus] = {}
        self.runs: list[dict[str, Any]] = []  # run config of each, run 1 first
        self.nodes: list[NodeRecord] = []

    def list_nodes(self) -> list[NodeRecord]:
        """That it answers at all says that headquarters is up."""
        return self.nodes

    def start_run(self, app: Path, run_config: Mapping[str, str | int | float | bool]) -> int:
        assert (app / "server" / "app.py").is_file()
        self.runs.append(dict(run_config))
        return len(self.runs)

    def run_status(self, run_id: int) -> RunStatus:
        if run_id in self._ended:
            return self._ended[run_id]
        self._ended[run_id] = self._run(run_id, self.runs[run_id - 1])
        return RunStatus("running", "", "")

    def _run(self, run_id: int, run_config: Mapping[str, Any]) -> RunStatus:
        try:
            run_server_app(self._make_grid(run_config), run_config)
        except FederationError as error:
            return RunStatus("finished", "failed", type(error).__name__)
        except Died:
            return RunStatus("finished", "failed", conduct.LOST)
        return RunStatus("finished", "completed", "")


def run_server_app(grid: Grid, run_config: Mapping[str, Any]) -> None:
    """The real ServerApp, as Flower calls it."""
    context = Context(
        run_id=1, node_id=1, node_config={}, state=RecordDict(), run_config=dict(run_config)
    )
    server.app.app(grid=grid, context=context)


def worse(region: SmallRegion) -> Reply:
    """A gate's reply that finds the candidate far below every reference."""

    def reply(sound: RecordDict) -> RecordDict:
        references = region.asked[-1].request.references
        found = dict.fromkeys(references, wire_evaluation.Difference(QUERIES, -0.3, VARIANCE))
        return wire_evaluation.comparison_reply({"ndcg@10": 0.2}, found, num_queries=QUERIES)

    return reply


class SmallFederation:
    """A headquarters on the tiny base with two small regions, and the control of its runs.

    Args:
        folder: where headquarters shall be.
        base: the tiny base.
    """

    def __init__(self, folder: Path, base: Path) -> None:
        self.hq = init_headquarters(folder, name="Small", address="hq.example:8443", base=base)
        encoder = conduct.base_encoder(self.hq)
        encoder.reset(seed=7)
        origin = encoder.adapter()
        self.regions = [
            SmallRegion(name, origin, base=self.hq.fingerprint) for name in ("east", "north")
        ]
        self.control = InProcessControl(lambda run_config: SmallGrid(self.regions))

    def train(self, *, rounds: int = 2, lines: Callable[[str], object] = silent) -> Training:
        """Make the next training and follow its run to the end."""
        training = conduct.new_training(self.hq, {"num-rounds": rounds, "region-wait-s": 0}, seed=7)
        conduct.follow(self.hq, self.control, training, on_line=lines)  # type: ignore[arg-type]
        return training

    def release(self) -> int:
        """Train, release and put into use."""
        number = conduct.release(self.hq, self.train())
        assert number is not None
        conduct.put_into_use(self.hq, number, event="release.promoted")
        return number

    def events(self) -> list[str]:
        """Of the audit log, oldest first."""
        return [entry.event for entry in read_audit(self.hq.audit)]
