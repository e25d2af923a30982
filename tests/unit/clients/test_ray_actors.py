"""Ray's actors as the pool sees them, without Ray: some die, and a lost machine leaves no room for new ones."""

from __future__ import annotations

import sys
import threading
from types import ModuleType, SimpleNamespace

import pytest
from fedpeft.clients import ray_pool
from fedpeft.clients.pool import Worker, get_result

from tests.refusals import refuses

WORK = SimpleNamespace(device="cpu", plugins=())


class RayTaskError(Exception):
    """Of a worker's own exception."""


class RayActorError(Exception):
    """The actor has died."""


class Cluster:
    """Stands for the package ray: room for so many actors, of which `lose` ends some."""

    def __init__(self, room):
        self.room, self.made, self.killed = room, 0, 0
        self.alive, self.pending, self.lock = {}, set(), threading.Lock()
        self.failure = None

    def actor(self, *_):
        with self.lock:
            number, self.made = self.made, self.made + 1
            if len(self.alive) < self.room:
                self.alive[number] = True
            else:
                self.pending.add(number)
        call = SimpleNamespace(remote=lambda *given: (number, given))
        return SimpleNamespace(handle=call, __ray_ready__=call, number=number)

    def get(self, asked):
        number, (instructions,) = asked
        if self.failure is not None:
            raise self.failure
        if number not in self.alive:
            raise RayActorError
        return [f"{i} done" for i in instructions]

    def wait(self, asked, timeout):
        return ([], asked) if asked[0][0] in self.pending else (asked, [])

    def kill(self, actor):
        self.killed += 1
        self.alive.pop(actor.number, None)
        self.pending.discard(actor.number)

    def lose(self, count):
        self.room -= count
        for number in list(self.alive)[:count]:
            del self.alive[number]


@pytest.fixture
def cluster(monkeypatch):
    made = Cluster(3)
    ray, errors = ModuleType("ray"), ModuleType("ray.exceptions")
    ray.remote = lambda **_: lambda _: SimpleNamespace(remote=made.actor)
    ray.get, ray.wait, ray.kill = made.get, made.wait, made.kill
    errors.RayTaskError, errors.RayActorError = RayTaskError, RayActorError
    monkeypatch.setitem(sys.modules, "ray", ray)
    monkeypatch.setitem(sys.modules, "ray.exceptions", errors)
    monkeypatch.setattr(ray_pool, "connect", lambda _: {"CPU": 3.0, "GPU": 0.0})
    return made


def asked(pool, count):
    return [pool.submit(Worker.handle, [i]) for i in range(count)]


def test_a_lost_machine_s_groups_are_run_by_what_is_left(cluster):
    pool = ray_pool.RayPool(WORK, None, 3, "")
    assert [get_result(call) for call in asked(pool, 5)] == [[f"{i} done"] for i in range(5)]
    cluster.lose(2)
    assert [get_result(call) for call in asked(pool, 9)] == [[f"{i} done"] for i in range(9)]
    assert cluster.made - 3 == 2, "each of the two was asked for anew, once"
    pool.close()
    assert not cluster.alive


def test_an_actor_that_dies_is_replaced_where_there_is_room(cluster):
    pool = ray_pool.RayPool(WORK, None, 3, "")
    del cluster.alive[0], cluster.alive[2]
    assert [get_result(call) for call in asked(pool, 9)] == [[f"{i} done"] for i in range(9)]
    assert len(cluster.alive) == 3
    pool.close()


def test_an_error_of_a_worker_brings_the_place_and_a_worker_that_can_not_begin_says_why(cluster):
    pool = ray_pool.RayPool(WORK, None, 3, "")
    cluster.failure = RayTaskError('File "/my_rules.py", line 7, in begin')
    cluster.failure.cause = ZeroDivisionError("division by zero")
    with pytest.raises(ZeroDivisionError) as raised:
        get_result(asked(pool, 1)[0])
    assert 'File "/my_rules.py", line 7, in begin' in str(raised.value.__cause__), "as the command's sentence needs it"
    cluster.failure = RayActorError("Traceback:\nfedpeft.errors.ConfigError: this run needs the plugin /my_rules.py")
    cluster.failure.actor_init_failed = True
    with refuses("FP5008", "ConfigError: this run needs the plugin /my_rules.py"):
        get_result(asked(pool, 1)[0])
    pool.close()


def test_without_any_machine_it_is_one_sentence(cluster):
    pool = ray_pool.RayPool(WORK, None, 3, "")
    cluster.lose(3)
    for call in asked(pool, 6):
        with refuses("FP5004"):
            get_result(call)
    pool.close()
