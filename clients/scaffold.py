"""SCAFFOLD's half of a client (Karimireddy et al., arXiv 1910.06378): local steps are corrected for the client's drift.

    y <- y - eta_t (g(y) - c_k + c),     c_k <- c_k - c + (x - y) / (sum_t eta_t)       ("option II")

where the paper has one eta, and so steps * eta; with warm-up the first steps are shorter. c_k estimates the client's
own gradient, c the mean over all clients. With FedProx, g includes the penalty's gradient.
"""

from __future__ import annotations

from fedpeft.clients.executor import Job, Trained

from fedpeft.peft.adapter import State


def correction(server: State, own: State) -> State:
    """c - c_k, which is added to every gradient; c_k is 0 at first."""
    return {name: c - own[name] if name in own else c for name, c in server.items()}


def after(job: Job, result: Trained, own: State) -> State:
    """The next c_k of the corrected tensors: the mean gradient of the round without the correction."""
    variate = {}
    for name, correction in job.correction.items():
        rate = job.training.rate(name, job.learning_rate)
        if rate:
            mean_step = (job.received[name] - result.state[name]) / (job.training.full_steps(result.steps) * rate)
            variate[name] = mean_step - correction
        else:
            variate[name] = own.get(name, correction.new_zeros(correction.shape))
    return variate
