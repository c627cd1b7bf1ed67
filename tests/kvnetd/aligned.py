"""Ports and maps of real models, made in a second and signed with a verdict of the test's own."""

from __future__ import annotations

from dataclasses import replace

import torch
from kvnetd.services import Services

from kvnet.align.artefacts import load_map, load_port, sign_alignment
from kvnet.align.corpus import fact_lessons
from kvnet.align.fit import Fit
from kvnet.align.fit_state import FitPlan
from kvnet.align.map import AlignmentMap
from kvnet.align.port import Port, learn_port
from kvnet.align.reading import LocalReader
from kvnet.alignment import LayerStrategy, MapManifest, Method, Pairing, PortManifest, Use
from kvnet.files.alignments import VerifiedAlignment
from kvnet.identity.keys import NodeKey
from kvnet.model.host import ModelHost
from kvnet.types import sha256_hex
from tests.builders import RECEIVER
from tests.files.alignment_files import GATE, judged_in

RANK = 12
LESSONS = list(fact_lessons(16, seed=77, fact_counts=(3,), num_questions=1))
WHEN = "2024-01-01T00:00:00Z"
ADMITTED = GATE
REFUSED = replace(GATE, admitted=False, reason="it recalls nothing")


def port_of(
    host: ModelHost, key: NodeKey = RECEIVER, *, state_layers: tuple[int, ...] = ()
) -> VerifiedAlignment:
    """A port of a few coordinates, signed: those of what the model takes that differ the most."""
    intake = host.intake(state_layers)
    readings = LocalReader(host, intake).read([lesson.text for lesson in LESSONS])
    taken = torch.cat([reading.taken(intake) for reading in readings])
    port = learn_port(taken, torch.zeros(0, intake.width), RANK, intake)
    manifest = PortManifest(
        receiver=host.fingerprint,
        geometry=host.geometry,
        state_layers=port.intake.state_layers,
        hidden_size=port.intake.hidden_size,
        rank=RANK,
        corpus_digest=sha256_hex(b"lessons"),
        num_rows=len(taken),
        created_at=WHEN,
        tensors_digest="",
    )
    return sign_alignment(manifest, port.to_tensors(), key)


def map_of(
    source: ModelHost,
    receiver: ModelHost,
    port: VerifiedAlignment | None,
    *,
    key: NodeKey = RECEIVER,
    admitted: bool = True,
    closing: str = "",
    created_at: str = WHEN,
    uses: tuple[Use, ...] = (),
    state_layers: tuple[int, ...] = (),
) -> VerifiedAlignment:
    """A map that sends every slot, fitted on a few lessons; what it carries is next to nothing.

    Its gate says that it is good for `uses`, of those that it has; for all of them if none is named. Without
    a port it ends in what the receiver takes, with states of `state_layers`.
    """
    ends_in = Port.identity(receiver.intake(state_layers)) if port is None else load_port(port)
    plan = FitPlan(source_layers=(0, 1), window=(0, 0), closing=closing)
    fit = Fit.begin(LocalReader(source), receiver, ends_in, plan)
    fit.run(LESSONS)
    found = fit.solve(1e-3)
    same_tokens = source.fingerprint.tokenizer_digest == receiver.fingerprint.tokenizer_digest
    manifest = MapManifest(
        source=source.fingerprint,
        source_geometry=source.geometry,
        receiver=receiver.fingerprint,
        receiver_geometry=receiver.geometry,
        port=port.manifest.id if port else "",
        state_layers=() if port else ends_in.intake.state_layers,
        hidden_size=0 if port else ends_in.intake.hidden_size,
        method=Method.RIDGE,
        pairing=Pairing.TOKENS if same_tokens else Pairing.SPANS,
        layer_strategy=LayerStrategy.LINEAR,
        source_layers=plan.source_layers,
        num_sinks=source.num_sinks,
        window=plan.window,
        far_window=None,
        far_layers=(),
        closing=closing,
        relative_lambda=1e-3,
        corpus_digest=sha256_hex(b"lessons"),
        num_contexts=len(LESSONS),
        num_rows=fit.state.num_rows,
        created_at=created_at,
        tensors_digest="",
        gate=ADMITTED if admitted else REFUSED,
    )
    manifest = judged_in(manifest, *uses)
    made = AlignmentMap(manifest, found.weight.float(), found.bias.float())
    return sign_alignment(manifest, made.to_tensors(), key)


def loaded(of_map: VerifiedAlignment, of_port: VerifiedAlignment | None) -> tuple[AlignmentMap, Port | None]:
    """Both as a node reads them."""
    port = load_port(of_port) if of_port else None
    return load_map(of_map, port), port


def keep(services: Services, *found: VerifiedAlignment | None) -> None:
    """Have these maps and ports."""
    for one in found:
        if one is not None:
            services.alignments.put(one)
