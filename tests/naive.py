"""What the operations should compute, written from the formulas in plain torch under autograd."""

import torch


def logprobs_and_entropy(
    logits, targets, *, temperature=1.0, mask=None, valid_vocab=None, softcap=None, logit_scale=1.0
):
    """log_softmax at the target and -sum p log p of each row; 0 where masked."""
    vocab = logits.shape[-1]
    mask = torch.ones_like(targets, dtype=torch.bool) if mask is None else mask
    z = logits.reshape(-1, vocab)[mask.flatten()][:, :valid_vocab] * logit_scale
    if softcap is not None:
        z = softcap * torch.tanh(z / softcap)
    if isinstance(temperature, torch.Tensor) and temperature.dim():
        temperature = temperature[mask][:, None]
    log_p = torch.log_softmax(z / temperature, -1)
    possible = log_p.exp() > 0
    surprise = torch.where(possible, log_p, 0.0)
    outputs = log_p.gather(1, targets[mask].long()[:, None])[:, 0], -(log_p.exp() * surprise).sum(1)
    return tuple(
        torch.zeros(targets.shape, dtype=z.dtype).masked_scatter(mask, output) for output in outputs
    )


def policy_loss(logprobs, entropy, spec, rows):
    """The sum over unmasked rows of the loss that `spec` names, row by row; vectors, fp64."""
    total = logprobs.new_zeros(())
    offsets = [0, len(logprobs)] if rows.cu_seqlens is None else rows.cu_seqlens.tolist()
    for start, end in zip(offsets, offsets[1:], strict=False):
        sequence = [i for i in range(start, end) if rows.mask[i]]
        for i in sequence:
            weight = 1.0 if rows.row_weights is None else rows.row_weights[i]
            if spec.loss_agg_mode == "seq-mean-token-mean":
                weight = weight / len(sequence)
            total = total + weight * _row_loss(logprobs, entropy, spec, rows, i, sequence)
    return total


def _row_loss(logprobs, entropy, spec, rows, i, sequence):
    advantage = rows.advantages[i]
    old = logprobs.detach() if rows.old_logprobs is None else rows.old_logprobs
    rho = (logprobs[i] - old[i]).exp()
    if spec.loss == "gspo":
        rho = torch.stack([logprobs[j] - old[j] for j in sequence]).mean().exp()
    bounded = min(max(rho, rho.new_tensor(1 - spec.clip_low)), rho.new_tensor(1 + spec.clip_high))
    if spec.loss == "reinforce":
        loss = -advantage * logprobs[i]
    elif spec.loss == "cispo":
        loss = -advantage * bounded.detach() * logprobs[i]
    else:
        loss = -min(rho * advantage, bounded * advantage)
        if spec.dual_clip is not None and advantage < 0:
            loss = min(loss, -spec.dual_clip * advantage)
    if spec.sampler_correction is not None:
        level, action = spec.sampler_correction.split("_")
        among = [i] if level == "token" else sequence
        correction = torch.stack([old[j] - rows.sampler_logprobs[j] for j in among]).sum().exp()
        if correction > spec.sampler_correction_cap:
            correction = spec.sampler_correction_cap if action == "truncate" else 0.0
        loss = loss * correction
    if spec.kl_estimator is not None:
        gap = rows.ref_logprobs[i] - logprobs[i]
        k3 = gap.exp() - 1 - gap
        kl = {
            "k1": -gap,
            "k2": gap**2 / 2,
            "k3": k3,
            "k3-corrected": (logprobs[i] - old[i]).exp() * k3,
        }
        loss = loss + spec.kl_coef * kl[spec.kl_estimator]
    return loss - spec.entropy_coef * entropy[i]
