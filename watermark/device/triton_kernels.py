# mypy: disable-error-code="import-not-found,import-untyped,no-untyped-def,no-untyped-call,untyped-decorator,misc"
"""The bias on CUDA: two Triton kernels, of which the second passes once over the logits.

`plan_kernel` runs one small program a row: it finds the window, hashes it, and leaves the row's seed, bound
and addition in 32 bytes; `add_kernel` runs one program for each 2,048 logits of a row: it expands the seed,
compares and adds. The two or three SipHashes of a row take as long as some 30 logits, and every thread of
every program of that row would repeat them; so they are a kernel of their own.

Nothing is read back, no size depends on what a tensor holds, and neither kernel writes a row that is left
alone: it is not read either.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl

from watermark.device.tables import TILE, DeviceTables
from watermark.device.windows import TokenTable
from watermark.green_list import Outcome
from watermark.keys import CODE_BITS
from watermark.prf import LANES

__all__ = ["PLAN_WORDS", "add_kernel", "add_to_green", "plan_kernel", "plan_rows", "plan_rows_from_table"]

#: int64 words of a row's plan: seed; addition (float32); k, and 256 where complemented; scope.
PLAN_WORDS = 4

_GOLDEN = tl.constexpr(0x9E3779B97F4A7C15)
_MIX_1 = tl.constexpr(0xBF58476D1CE4E5B9)
_MIX_2 = tl.constexpr(0x94D049BB133111EB)
_SIP_0 = tl.constexpr(0x736F6D6570736575)
_SIP_1 = tl.constexpr(0x646F72616E646F6D)
_SIP_2 = tl.constexpr(0x6C7967656E657261)
_SIP_3 = tl.constexpr(0x7465646279746573)
_LANES = tl.constexpr(LANES)
_CODE_BITS = tl.constexpr(CODE_BITS)
_TILE = tl.constexpr(TILE)
_MARKED = tl.constexpr(int(Outcome.MARKED))
_OFF = tl.constexpr(int(Outcome.OFF))
_NO_WINDOW = tl.constexpr(int(Outcome.NO_WINDOW))
_NO_ACCOUNT = tl.constexpr(int(Outcome.NO_ACCOUNT))
_OUTCOMES = tl.constexpr(len(Outcome))


@triton.jit
def _rounds(v0, v1, v2, v3, COUNT: tl.constexpr):  # noqa: N803
    for _ in tl.static_range(COUNT):
        v0 = v0 + v1
        v2 = v2 + v3
        v1 = ((v1 << 13) | (v1 >> 51)) ^ v0
        v3 = ((v3 << 16) | (v3 >> 48)) ^ v2
        v0 = (v0 << 32) | (v0 >> 32)
        v2 = v2 + v1
        v0 = v0 + v3
        v1 = ((v1 << 17) | (v1 >> 47)) ^ v2
        v3 = ((v3 << 21) | (v3 >> 43)) ^ v0
        v2 = (v2 << 32) | (v2 >> 32)
    return v0, v1, v2, v3


@triton.jit
def _id_before(back, newest_ptr, newest_count, older_ptr):
    """The id `back` places before a row's last one, which is at `newest_ptr` if it is among the newest."""
    if back < newest_count:
        found = tl.load(newest_ptr - back).to(tl.int64)
    else:
        found = tl.load(older_ptr - back).to(tl.int64)
    return found


@triton.jit
def _sip(k0, k1, h, newest_ptr, newest_count, older_ptr):
    """SipHash-2-4 of a row's last h ids, oldest first."""
    v0 = k0 ^ _SIP_0
    v1 = k1 ^ _SIP_1
    v2 = k0 ^ _SIP_2
    v3 = k1 ^ _SIP_3
    for i in range(h // 2):
        low = _id_before(h - 1 - 2 * i, newest_ptr, newest_count, older_ptr)
        high = _id_before(h - 2 - 2 * i, newest_ptr, newest_count, older_ptr)
        block = low.to(tl.uint64) | (high.to(tl.uint64) << 32)
        v3 = v3 ^ block
        v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 2)
        v0 = v0 ^ block
    block = h.to(tl.uint64) << 58  # The length in bytes, 4h, in the highest byte.
    if h % 2 == 1:
        block = block | _id_before(0, newest_ptr, newest_count, older_ptr).to(tl.uint64)
    v3 = v3 ^ block
    v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 2)
    v0 = v0 ^ block
    v2 = v2 ^ 0xFF
    v0, v1, v2, v3 = _rounds(v0, v1, v2, v3, 4)
    return v0 ^ v1 ^ v2 ^ v3


@triton.jit(do_not_specialize=["max_slots", "max_scopes", "vocab_size", "ids_stride"])
def plan_kernel(
    plan_ptr,  # int64 (R, PLAN_WORDS)
    counts_ptr,  # int64 (max_scopes, outcomes)
    row_slot_ptr,  # (R,)
    slots_ptr,  # int64 (max_slots, 66): addition and scope, account flag, code word
    max_slots,
    max_scopes,
    scope_windows_ptr,  # int32 (max_scopes,)
    fleet_lanes_ptr,  # int32 (max_scopes,)
    lane_words_ptr,  # int64 (max_scopes, 64, 2)
    lane_k_ptr,  # int32 (max_scopes, 64)
    code_words_ptr,  # int64 (max_scopes, 2)
    special_ptr,  # uint8 (max_scopes, vocab_size)
    vocab_size,
    ids_ptr,  # (R, ids_stride): the rows' windows, or with FROM_TABLE the ids fed
    ids_stride,
    length_ptr,  # (R,): the responses' lengths, or with FROM_TABLE (S,): the prompts'
    table_ptr,  # (S, table_stride), FROM_TABLE only, as all below
    table_stride,
    local_pos_ptr,  # (R,)
    pos_ptr,  # (R,)
    FROM_TABLE: tl.constexpr,  # noqa: N803
):
    """Work out one row's plan, and count its outcome."""
    row = tl.program_id(0).to(tl.int64)
    plan = plan_ptr + row * 4
    tl.store(plan + 1, 0)
    slot = tl.load(row_slot_ptr + row).to(tl.int64)
    if (slot < 0) | (slot >= max_slots):
        return
    record = slots_ptr + slot * 66
    head = tl.load(record)
    scope = head >> 32
    if (scope < 0) | (scope >= max_scopes):
        return
    counts = counts_ptr + scope * _OUTCOMES
    # The low half is a float32; all of its bits but the sign are 0 in 0.0 and -0.0.
    if (head & 0x7FFFFFFF) == 0:
        tl.atomic_add(counts + _OFF, 1, sem="relaxed")
        return

    h = tl.load(scope_windows_ptr + scope)
    newest_ptr = ids_ptr + row * ids_stride + ids_stride - 1
    if FROM_TABLE:
        # The rows before this one are its request's as far back as its place among them says.
        newest_count = tl.minimum(tl.load(local_pos_ptr + row).to(tl.int64), row) + 1
        pos = tl.load(pos_ptr + row).to(tl.int64)
        older_ptr = table_ptr + slot * table_stride + pos
        length = pos + 1 - tl.load(length_ptr + slot).to(tl.int64)
    else:
        newest_count = row * 0 + 8
        older_ptr = newest_ptr
        length = tl.load(length_ptr + row).to(tl.int64)
    bad = (length < h).to(tl.int32)
    if bad == 0:
        for back in range(h):
            found = _id_before(back, newest_ptr, newest_count, older_ptr)
            inside = (found >= 0) & (found < vocab_size)
            bad = bad | tl.load(special_ptr + scope * vocab_size + found, mask=inside, other=1).to(tl.int32)
    if bad != 0:
        tl.atomic_add(counts + _NO_WINDOW, 1, sem="relaxed")
        return

    zero = (row * 0).to(tl.uint64)
    lane = (_sip(zero, zero, h, newest_ptr, newest_count, older_ptr) % _LANES).to(tl.int64)
    complemented = row * 0
    if lane >= tl.load(fleet_lanes_ptr + scope):
        if tl.load(record + 1).to(tl.int32) == 0:
            tl.atomic_add(counts + _NO_ACCOUNT, 1, sem="relaxed")
            return
        c0 = tl.load(code_words_ptr + scope * 2).to(tl.uint64)
        c1 = tl.load(code_words_ptr + scope * 2 + 1).to(tl.uint64)
        position = (_sip(c0, c1, h, newest_ptr, newest_count, older_ptr) % _CODE_BITS).to(tl.int64)
        complemented = (tl.load(record + 2 + (position >> 6)) >> (position & 63)) & 1
    key = lane_words_ptr + (scope * _LANES + lane) * 2
    k0 = tl.load(key).to(tl.uint64)
    k1 = tl.load(key + 1).to(tl.uint64)
    seed = _sip(k0, k1, h, newest_ptr, newest_count, older_ptr)
    k = tl.load(lane_k_ptr + scope * _LANES + lane).to(tl.int64)
    tl.store(plan, seed.to(tl.int64))
    tl.store(plan + 1, head & 0xFFFFFFFF)
    tl.store(plan + 2, k | (complemented << 8))
    tl.store(plan + 3, scope)
    tl.atomic_add(counts + _MARKED, 1, sem="relaxed")


@triton.jit(do_not_specialize=["tiles"])
def add_kernel(
    logits_ptr,  # (R, V), row stride logits_stride
    logits_stride,
    vocabulary,
    plan_ptr,  # int64 (R, PLAN_WORDS)
    special_ptr,  # uint8 (max_scopes, vocab_size)
    vocab_size,
    special_tiles_ptr,  # int32 (max_scopes, tiles)
    tiles,
):
    """Add one row's addition to its green logits in one tile of the vocabulary."""
    # Consecutive programs take consecutive tiles of one row.
    row_tiles = tl.cdiv(vocabulary, _TILE)
    row = (tl.program_id(0) // row_tiles).to(tl.int64)
    tile = tl.program_id(0) % row_tiles
    plan = plan_ptr + row * 4
    addition = tl.load(plan + 1).to(tl.int32).to(tl.float32, bitcast=True)
    if addition == 0.0:
        return
    seed = tl.load(plan).to(tl.uint64)
    gamma = tl.load(plan + 2).to(tl.uint32)
    scope = tl.load(plan + 3)

    offset = tl.arange(0, _TILE)
    token = tile * _TILE + offset
    inside = token < vocabulary
    place = logits_ptr + row * logits_stride + token
    before = tl.load(place, mask=inside)
    z = seed + (tile.to(tl.uint64) * _TILE + 1) * _GOLDEN + offset.to(tl.uint64) * _GOLDEN
    z = (z ^ (z >> 30)) * _MIX_1
    z = (z ^ (z >> 27)) * _MIX_2
    # u is z ^ (z >> 31), whose high 31 bits are z's: `u < k * 2^56` is a comparison of z's high half.
    chosen = ((z >> 32).to(tl.uint32) < ((gamma & 255) << 24)) != (gamma > 255)
    after = tl.where(chosen, (before.to(tl.float32) + addition).to(before.dtype), before)
    # Most tiles hold no special id.
    if tl.load(special_tiles_ptr + scope * tiles + tile) != 0:
        special = tl.load(special_ptr + scope * vocab_size + token, mask=inside, other=0)
        after = tl.where(special != 0, before, after)
    tl.store(place, after, mask=inside)


def plan_rows(
    tables: DeviceTables, *, windows: torch.Tensor, row_slot: torch.Tensor, window_length: torch.Tensor
) -> torch.Tensor:
    """Plan R rows from their windows: int64 of shape (R, PLAN_WORDS). Arguments as `DeviceGreenLists.bias`."""
    return _plan(tables, row_slot=row_slot, ids=windows, ids_stride=windows.shape[1], lengths=window_length, table=None)


def plan_rows_from_table(tables: DeviceTables, table: TokenTable) -> torch.Tensor:
    """Plan R rows from an engine's table of token ids: int64 of shape (R, PLAN_WORDS)."""
    return _plan(
        tables, row_slot=table.row_slot, ids=table.input_ids, ids_stride=1, lengths=table.prompt_len, table=table
    )


def _plan(
    tables: DeviceTables,
    *,
    row_slot: torch.Tensor,
    ids: torch.Tensor,
    ids_stride: int,
    lengths: torch.Tensor,
    table: TokenTable | None,
) -> torch.Tensor:
    rows = row_slot.shape[0]
    plan = torch.empty((rows, PLAN_WORDS), dtype=torch.int64, device=row_slot.device)
    plan_kernel[(rows,)](
        plan,
        tables.counts,
        row_slot,
        tables.slots,
        tables.max_slots,
        tables.max_scopes,
        tables.windows,
        tables.fleet_lanes,
        tables.lane_words,
        tables.lane_k,
        tables.code_words,
        tables.special,
        tables.vocab_size,
        ids,
        ids_stride,
        lengths,
        # Without a table the last pointers are never followed.
        row_slot if table is None else table.all_token_ids,
        0 if table is None else table.all_token_ids.stride(0),
        row_slot if table is None else table.local_pos,
        row_slot if table is None else table.pos,
        FROM_TABLE=table is not None,
        num_warps=1,
        enable_fp_fusion=False,
    )
    return plan


def add_to_green(logits: torch.Tensor, tables: DeviceTables, plan: torch.Tensor) -> None:
    """Add each row's addition to its green logits, in place."""
    rows, vocabulary = logits.shape
    add_kernel[(rows * triton.cdiv(vocabulary, TILE),)](
        logits,
        logits.stride(0),
        vocabulary,
        plan,
        tables.special,
        tables.vocab_size,
        tables.special_tiles,
        tables.special_tiles.shape[1],
        num_warps=4,
        enable_fp_fusion=False,
    )
