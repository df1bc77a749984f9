"""Parts on threads that exchange through mailboxes: the values, the messages and the bytes."""

import random
import threading
from collections import Counter

import numpy as np
import pytest
from routing import Answered

import dbdask
from dbdask.errors import ShardLost
from dbdask.metrics.time_spent import Spent
from dbdask.models.cut import even_cut
from dbdask.models.cut_table import cut_table
from dbdask.models.exchange_cost import messages
from dbdask.models.part import Part
from dbdask.models.part_evaluation import ELSEWHERE, PartEvaluator
from dbdask.rpc.calls import ActorPlace
from dbdask.schedule.gangs import Member
from dbdask.worker.link import ServerHandle, ServerLink, ShardPlace
from dbdask.worker.mailbox import GangEnded, Mailbox, PeerLost, mailbox_key
from dbdask.worker.peers import Peers, ask_peers
from dbdask.worker.routes import Calls

RUN, SHARD = "run", ActorPlace("tcp://shard", "shard")


class Batch:
    """A minibatch."""

    weights = None

    def __init__(self, inputs, targets, step):
        self.inputs, self.targets, self.step = inputs, targets, step


class Here:
    """Routes to mailboxes of this process, which note what they carry.

    Parameters
    ----------
    mailboxes
        By worker.
    seed
        With it, messages come in disorder, and some of them twice.
    """

    is_direct = False

    def __init__(self, mailboxes, seed=None):
        self.mailboxes, self.carried, self.lock = mailboxes, Counter(), threading.Lock()
        self.rng = None if seed is None else random.Random(seed)
        self.shard_answers, self.gone = True, set()

    def transport(self, place, generation):
        routes = self

        class Way:
            is_direct = False

            def start(self, request, sent=None, into=None):
                return routes.start(place, request, sent)

        return Way()

    def start(self, place, request, sent):
        if place.worker in self.gone:
            raise OSError("nobody listens")
        address, _, _, few = request.arguments
        values = few if sent is None else sent
        receiver = sorted(self.mailboxes).index(place.worker)
        with self.lock:
            key = (*address[4:7], receiver, values.nbytes)
            self.carried[key] += 1
            twice = self.rng is not None and self.rng.random() < 0.3
        answer = self.mailboxes[place.worker].answer(request, sent)
        if twice:
            self.mailboxes[place.worker].answer(request, sent)
        return Answered(answer)

    def answers(self, place, generation):
        return self.shard_answers if place == SHARD else place.worker not in self.gone

    def asks(self, place, generation, method, *arguments):
        if place.worker in self.gone:
            return None
        return may_send(self.mailboxes[place.worker], *arguments)

    def lost(self, place, error):
        return ShardLost(f"{place.key} is gone: {error}")


def may_send(mailbox, gang, attempt):
    coroutine = mailbox.may_send(gang, attempt)
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value
    raise AssertionError("it answers at once")


class Pool:
    def __init__(self):
        self.sizes = set()

    def buffer(self, size):
        self.sizes.add(size)
        return np.empty(size, np.float32)

    def give_back(self, *vectors):
        pass


class Gang:
    """Parts of a network, each with a mailbox."""

    def __init__(self, network, parts, seed=None):
        self.network, self.cut = network, even_cut(network, parts)
        self.table = cut_table(network, self.cut)
        self.parts = [Part(network, self.cut, k) for k in range(parts)]
        self.workers = tuple(f"tcp://{k}" for k in range(parts))
        self.mailboxes = {worker: Mailbox() for worker in self.workers}
        self.routes = Here(self.mailboxes, seed)
        for mailbox in self.mailboxes.values():
            mailbox.join(0, 0)
        handle = ServerHandle(RUN, 0, 1, (ShardPlace(0, 1, (SHARD,)),))
        self.link = ServerLink(handle, self.routes, Calls())

    def peers(self, index, attempt=0):
        member = Member(0, attempt, index, self.workers)
        mailbox = self.mailboxes[self.workers[index]]
        return Peers(member, (0, 3), mailbox, self.link, self.routes, Pool(), Spent())

    def each(self, work):
        """Do `work(index)` for all parts at once; return the results, or the errors."""
        results = [None] * len(self.parts)

        def run(index):
            try:
                results[index] = work(index)
            except Exception as error:
                results[index] = error

        threads = [threading.Thread(target=run, args=(k,)) for k in range(len(self.parts))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        return results


def speech(units=24):
    layers = [dbdask.Dense(units, "sigmoid"), dbdask.Dense(units, "tanh"), dbdask.Dense(9)]
    return dbdask.Network(input_shape=(7,), layers=layers, loss="softmax")


def batches(count, examples=300):
    rng = np.random.default_rng(0)
    return [
        Batch(rng.normal(size=(examples, 7)).astype(np.float32), rng.integers(0, 9, examples), step)
        for step in range(count)
    ]


@pytest.mark.parametrize("parts", [2, 3, 4])
@pytest.mark.parametrize("seed", [None, 1, 2])
def test_messages_and_bytes_are_those_that_were_counted_and_values_those_of_the_whole(parts, seed):
    network, gang = speech(), Gang(speech(), parts, seed)
    parameters = network.initial_parameters(1, 0, network.parameter_count)
    vector = gang.table.to_cut(parameters)
    steps = batches(4)

    def work(index):
        part, peers = gang.parts[index], gang.peers(index)
        evaluator, gradients, found = PartEvaluator(part), [], []
        for batch in steps:
            peers.begin_step()
            gradient = np.empty(part.size, np.float32)
            minibatch = evaluator.minibatch(
                vector[slice(*part.range)], batch, (0, 3), gradient=gradient, as_mean=False
            )
            found.append(peers.drive(minibatch, "model"))
            gradients.append(gradient)
        return found, gradients

    results = gang.each(work)
    assert not any(isinstance(result, Exception) for result in results), results
    whole = np.empty_like(parameters)
    for number, batch in enumerate(steps):
        loss = network.loss_and_gradient(parameters, batch.inputs, batch.targets, gradient=whole)
        decisions = {result[0][number] for result in results}
        assert len(decisions) == 1
        assert decisions.pop().loss == pytest.approx(loss, rel=1e-5)
        gradient = gang.table.to_whole(np.concatenate([r[1][number] for r in results]))
        np.testing.assert_allclose(gradient, whole, atol=1e-4 * np.abs(whole).max())
    expected = Counter(map(tuple, messages(network, gang.cut, len(steps[0].inputs))))
    assert gang.routes.carried == {message: 4 * times for message, times in expected.items()}


# Rule 23: where to begin


def test_all_parts_begin_where_the_first_one_says():
    gang = Gang(speech(), 3)
    given = np.array([5, 9, 1])
    begun = gang.each(lambda index: gang.peers(index).begin(None if index else given))
    assert [one.tolist() for one in begun] == 3 * [given.tolist()]


# Rule 24: the one decision


class Spoilt:
    """A part whose gradient comes out bad, where the loss and the other parts are fine."""

    def __init__(self, part):
        self.part = part

    def __getattr__(self, name):
        return getattr(self.part, name)

    def loss_and_gradient(self, *arguments, gradient, **options):
        loss = yield from self.part.loss_and_gradient(*arguments, gradient=gradient, **options)
        gradient[-1] = np.inf
        return loss


@pytest.mark.parametrize("culprit", [0, 1, 2])
def test_what_one_part_finds_bad_counts_in_none(culprit):
    gang = Gang(speech(), 3)
    network = gang.network
    vector = gang.table.to_cut(network.initial_parameters(1, 0, network.parameter_count))

    def work(index):
        part, peers = gang.parts[index], gang.peers(index)
        peers.begin_step()
        evaluator = PartEvaluator(Spoilt(part) if index == culprit else part)
        minibatch = evaluator.minibatch(
            vector[slice(*part.range)],
            batches(1)[0],
            (0, 3),
            gradient=np.empty(part.size, np.float32),
            as_mean=True,
        )
        return peers.drive(minibatch, "model")

    found = gang.each(work)
    names = [one.bad for one in found]
    assert names[culprit] == "dense_2_bias" and names.count(ELSEWHERE) == 2
    assert len({one.loss for one in found}) == 1 and np.isfinite(found[0].loss)


# Rule 26


def test_a_part_whose_peer_is_gone_ends():
    gang = Gang(speech(), 2)
    gang.routes.gone.add(gang.workers[1])
    with pytest.raises(PeerLost, match="a member of gang 0 is gone"):
        gang.peers(0).begin(np.zeros(3, np.int64))


def test_a_part_whose_peer_has_left_ends():
    gang = Gang(speech(), 2)
    gang.mailboxes[gang.workers[1]].end(0)
    with pytest.raises(GangEnded, match="has ended at a peer"):
        gang.peers(0).begin(np.zeros(3, np.int64))


def test_peers_that_are_asked_are_busy_or_have_left():
    gang = Gang(speech(), 3)
    member = Member(0, 0, 0, gang.workers)
    ask_peers(member, [1, 2], gang.link, gang.routes)
    gang.mailboxes[gang.workers[2]].end(0)
    with pytest.raises(GangEnded, match="part 2 on tcp://2 has left gang 0") as raised:
        ask_peers(member, [1, 2], gang.link, gang.routes)
    assert raised.value.by == "another"
    gang.routes.gone.add("tcp://1")
    with pytest.raises(PeerLost, match="part 1 on tcp://1 answers no ping"):
        ask_peers(member, [1, 2], gang.link, gang.routes)
    gang.routes.shard_answers = False
    with pytest.raises(ShardLost, match="answers no ping"):
        ask_peers(member, [1], gang.link, gang.routes)


def test_minibatches_of_many_sizes_need_few_vectors():
    """A pool keeps a vector, and its descriptor, for each size that it was ever asked for."""
    gang = Gang(speech(units=256), 2)
    vector = gang.table.to_cut(gang.network.initial_parameters(1, 0, gang.network.parameter_count))
    steps = [batch for examples in range(1, 60) for batch in batches(1, examples)]

    def work(index):
        part, peers = gang.parts[index], gang.peers(index)
        evaluator, gradient = PartEvaluator(part), np.empty(part.size, np.float32)
        for batch in steps:
            peers.begin_step()
            minibatch = evaluator.minibatch(
                vector[slice(*part.range)], batch, (0, 3), gradient=gradient, as_mean=False
            )
            peers.drive(minibatch, "model")
        return peers._buffers.sizes

    sizes = set.union(*gang.each(work))
    assert sizes and len(sizes) < 10


def test_the_key_is_that_of_the_run():
    assert mailbox_key("a") != mailbox_key("b")
