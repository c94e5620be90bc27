"""Ways in which the same values can lie in memory: functions from a contiguous tensor to an equal one."""

import torch


def contiguous(values):
    return values


def transposed(values):
    """The last axis outermost in memory; for (N, C) the classes are strided and the rows contiguous."""
    return values.movedim(-1, 0).contiguous().movedim(0, -1)


def first_two_axes_swapped(values):
    """(N, C, ...) stored as (C, N, ...)."""
    return values.transpose(0, 1).contiguous().transpose(0, 1)


def class_axis_last(values):
    """(N, C, d1, ...) stored as (N, d1, ..., C): channels_last for any number of axes."""
    return values.movedim(1, -1).contiguous().movedim(-1, 1)


def cut_from_wider_rows(values):
    """The last axis is a part of a longer one, so a row's stride is not its length."""
    wider = torch.full((*values.shape[:-1], values.size(-1) + 3), torch.nan).to(values)
    wider[..., 1:-2] = values
    return wider[..., 1:-2]


def cut_from_more_classes(values):
    """The class axis is a part of a longer one, as logits[:, :num_valid_classes] of a padded vocabulary is."""
    more = torch.full((values.size(0), values.size(1) + 3, *values.shape[2:]), torch.nan).to(values)
    more[:, :-3] = values
    return more[:, :-3]


def every_second_row(values):
    doubled = torch.full((2 * values.size(0), *values.shape[1:]), torch.nan).to(values)
    doubled[::2] = values
    return doubled[::2]


def every_second_element(values):
    """No axis is contiguous."""
    doubled = torch.full((*values.shape[:-1], 2 * values.size(-1)), torch.nan).to(values)
    doubled[..., ::2] = values
    return doubled[..., ::2]


def offset_by_one_element(values):
    """Starts one element into its storage: aligned to the element, not to a vector."""
    storage = torch.full((values.numel() + 1,), torch.nan).to(values)
    storage[1:] = values.flatten()
    return storage[1:].view(values.shape)


def flipped_twice(values):
    """Through torch.flip, which copies: torch has no negative strides."""
    return values.flip(0).flip(0)


def last_axis_outermost_and_offset(values):
    return offset_by_one_element(values.movedim(-1, 0)).movedim(0, -1)


LAYOUTS = [
    contiguous,
    transposed,
    first_two_axes_swapped,
    class_axis_last,
    cut_from_wider_rows,
    cut_from_more_classes,
    every_second_row,
    every_second_element,
    offset_by_one_element,
    flipped_twice,
    last_axis_outermost_and_offset,
]
