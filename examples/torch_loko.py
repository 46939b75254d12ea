"""LoKO as a torch.optim.Optimizer, its Jacobian by torch.func; shares no code with the oracle.

Check it with ``loko-ref verify examples/torch_loko.py``: the last lines are all that takes.
"""

import torch

from loko_ref.conformance.implementations.frameworks import from_torch


class LoKO(torch.optim.Optimizer):
    """Diagonal Kalman filter over the parameters; ``step(module, x, y)`` takes a batch.

    The variances are ``state[parameter]["p"]``, the noise estimate is ``param_groups[0]["R"]``.
    """

    def __init__(self, params, p0=0.07, observation="glm", noise="glm", beta=0.95, lam=1.0, q=0.0,
                 timing="before"):  # fmt: skip
        super().__init__(params, {"beta": beta, "lam": lam, "q": q})
        self.observation, self.noise, self.timing = observation, noise, timing
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["p"] = torch.full_like(parameter, p0)

    def jacobian(self, module, x):
        """z (batch, C), Z (batch C, n)."""
        named = {name: t for name, t in module.named_parameters() if t.requires_grad}
        names, values = list(named), tuple(t.detach() for t in named.values())

        def outputs(*values):
            return torch.func.functional_call(module, dict(zip(names, values, strict=True)), (x,))

        z = outputs(*values)
        parts = torch.func.jacrev(outputs, argnums=tuple(range(len(values))))(*values)
        return z, torch.cat([part.reshape(z.numel(), -1) for part in parts], dim=1)

    @torch.no_grad()
    def step(self, module, x, y):
        group = self.param_groups[0]
        parameters = group["params"]
        p = torch.cat([self.state[t]["p"].reshape(-1) for t in parameters])
        p = p / group["lam"] + group["q"]
        z, Z = self.jacobian(module, x)
        batch, C = z.shape
        yhat = z if self.observation == "gaussian" else torch.softmax(z, dim=-1)
        e, H = (y - yhat).reshape(-1), Z
        J = torch.block_diag(*(torch.diag(row) - torch.outer(row, row) for row in yhat))
        if self.observation in ("softmax", "glm"):
            H = J @ Z
        HpH = (H * p) @ H.T
        if self.observation == "glm":
            eye = torch.eye(len(e), dtype=z.dtype)
            centre = eye - torch.kron(
                torch.eye(batch, dtype=z.dtype), torch.ones_like(J[:C, :C]) / C
            )
            K = (Z * p).T @ torch.linalg.solve(eye + J @ ((Z * p) @ Z.T), centre)
        else:
            if self.timing == "before":
                self.refresh(group, e, HpH)
            K = self.gain(p, H, HpH + group["R"])
        p = p * (1 - (K.T * H).sum(dim=0))
        if self.observation != "glm" and self.timing == "after":
            self.refresh(group, e, HpH)
        self.write(parameters, K @ e, p)

    def gain(self, p, H, S):
        return torch.linalg.solve(S, H * p).T

    def refresh(self, group, e, HpH):
        if self.noise == "fixed":
            return
        sample = torch.outer(e, e) + (HpH if self.noise == "ema_innovation_hph" else 0)
        group["R"] = group["beta"] * group["R"] + (1 - group["beta"]) * sample

    def write(self, parameters, move, p):
        at = 0
        for t in parameters:
            span = slice(at, at + t.numel())
            at = span.stop
            t += move[span].reshape(t.shape)
            self.state[t]["p"] = p[span].reshape(t.shape)


def make(module, options, optimizer=LoKO):
    known = {"observation", "noise", "timing", "beta", "lam", "q"}
    if options["diagonal"] != "decoupled" or options["noise"] == "ema_residual_hph":
        raise NotImplementedError("only the decoupled diagonal, no estimate from residuals")
    if options["center"]:
        raise NotImplementedError("center")
    trained = [t for t in module.parameters() if t.requires_grad]
    return optimizer(trained, **{k: v for k, v in options.items() if k in known})


IMPLEMENTATION = from_torch(make, lambda optimizer, module, x, y: optimizer.step(module, x, y))
