"""A pickle read as data: what it describes is written down, and nothing that it names is imported or called.

A pickle is a program that builds an object: `pickle.load` runs it, whoever wrote it. Here its instructions are
interpreted as data alone: a class or function is its name, and a call of it is a `Call` that holds the arguments.
Owns the instructions, and how many of them are followed. What a name means is the reader's matter.
"""

import pickletools
from collections.abc import Iterable
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

MAX_INSTRUCTIONS = 500_000
"""DenseNet121 takes 40,000; a file that goes on without end takes some seconds to be refused."""


class UnreadableError(ValueError):
    """A file is not what its reader knows; the message says why, in a few words."""


@dataclass(frozen=True, slots=True)
class Name:
    """A class or function, as `module name`."""

    text: str


@dataclass(frozen=True, slots=True, eq=False)
class PersistentId:
    """Something that lies outside of the pickle, by what the pickle calls it."""

    value: object


@dataclass(slots=True, eq=False)
class Call:
    """An object that a call would have made.

    Attributes:
        callee: usually a `Name`.
        arguments: of the call; a tuple in every pickle that was made by Python.
        state: what the object's attributes would have been set to.
    """

    callee: object
    arguments: object
    state: object = None


@dataclass(slots=True)
class PickledData:
    """What a pickle describes, and the persistent ids in it, in their order."""

    content: object
    persistent_ids: list[PersistentId] = field(default_factory=list)


def read_pickle(file: BytesIO) -> PickledData:
    """Read one pickle of any protocol, from where a file stands to the pickle's end.

    Containers become dicts, lists and tuples (sets become lists). Keys that are neither text nor int are left out.

    Raises:
        UnreadableError: it is no pickle, or too long a one.
    """
    reader = _Reader()
    try:
        for number, (opcode, argument, _) in enumerate(pickletools.genops(file)):
            if opcode.name == "STOP":
                return PickledData(reader.pop(), reader.persistent_ids)
            if number >= MAX_INSTRUCTIONS:
                raise UnreadableError(f"more than {MAX_INSTRUCTIONS:,} pickle instructions")
            reader.follow(opcode.name, argument)
    except UnreadableError:
        raise
    except (ValueError, LookupError, TypeError, OverflowError) as error:
        raise UnreadableError(f"no whole pickle, {type(error).__name__}") from error
    raise UnreadableError("no whole pickle")


_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_EMPTY: dict[str, type[Any]] = {"EMPTY_DICT": dict, "EMPTY_LIST": list, "EMPTY_SET": list}
_TUPLES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_SETS = ("__builtin__ set", "builtins set")


class _Reader:
    """The machine that a pickle is a program of: a stack with marks, and a memo."""

    def __init__(self) -> None:
        self.persistent_ids: list[PersistentId] = []
        self._stack: list[Any] = []
        self._marks: list[int] = []
        self._memo: dict[int, Any] = {}

    def pop(self) -> Any:
        if len(self._stack) <= (self._marks[-1] if self._marks else 0):
            raise UnreadableError("a pickle that takes more from its stack than there is")
        return self._stack.pop()

    def _pop_to_mark(self) -> list[Any]:
        start = self._marks.pop()
        values, self._stack[start:] = self._stack[start:], []
        return values

    def follow(self, instruction: str, argument: Any) -> None:
        """Follow one instruction, by its name in `pickletools`."""
        push = self._stack.append
        if instruction in _LITERALS:
            push(argument)
        elif instruction in _CONSTANTS:
            push(_CONSTANTS[instruction])
        elif instruction in _EMPTY:
            push(_EMPTY[instruction]())
        elif instruction in _TUPLES:
            values = [self.pop() for _ in range(_TUPLES[instruction])]
            push(tuple(reversed(values)))
        elif instruction in ("BINPUT", "LONG_BINPUT", "PUT"):
            self._memo[argument] = self._stack[-1]
        elif instruction in ("BINGET", "LONG_BINGET", "GET"):
            push(self._memo[argument])
        else:
            self._follow_rare(instruction, argument)

    def _follow_rare(self, instruction: str, argument: Any) -> None:
        push = self._stack.append
        match instruction:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self._marks.append(len(self._stack))
            case "TUPLE":
                push(tuple(self._pop_to_mark()))
            case "LIST" | "FROZENSET":
                push(self._pop_to_mark())
            case "DICT":
                values = self._pop_to_mark()
                push({})
                self._set_items(values)
            case "APPEND":
                self._extend([self.pop()])
            case "APPENDS" | "ADDITEMS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                value, key = self.pop(), self.pop()
                self._set_items([key, value])
            case "SETITEMS":
                self._set_items(self._pop_to_mark())
            case "GLOBAL":
                push(Name(argument))
            case "STACK_GLOBAL":
                name, module = self.pop(), self.pop()
                push(Name(f"{module} {name}" if isinstance(module, str) and isinstance(name, str) else ""))
            case "REDUCE" | "NEWOBJ":
                arguments, callee = self.pop(), self.pop()
                push(_object_of(callee, arguments))
            case "NEWOBJ_EX":
                _, arguments, callee = self.pop(), self.pop(), self.pop()
                push(_object_of(callee, arguments))
            case "INST":
                push(Call(Name(argument), tuple(self._pop_to_mark())))
            case "OBJ":
                callee, *values = self._pop_to_mark()
                push(Call(callee, tuple(values)))
            case "BUILD":
                state, target = self.pop(), self._stack[-1]
                if isinstance(target, Call):
                    target.state = state
            case "BINPERSID":
                self.persistent_ids.append(PersistentId(self.pop()))
                push(self.persistent_ids[-1])
            case "MEMOIZE":
                self._memo[len(self._memo)] = self._stack[-1]
            case "DUP":
                push(self._stack[-1])
            case "POP":
                if self._marks and self._marks[-1] == len(self._stack):
                    self._marks.pop()
                else:
                    self.pop()
            case "POP_MARK":
                self._pop_to_mark()
            case _:
                raise UnreadableError(f"the pickle instruction {instruction}, which no file of weights needs")

    def _extend(self, values: Iterable[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, list):
            target.extend(values)

    def _set_items(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, dict):
            pairs = zip(values[::2], values[1::2], strict=True)
            # A key of nested tuples would be hashed all the way down.
            target.update((key, value) for key, value in pairs if isinstance(key, str | int))


def _object_of(callee: object, arguments: object) -> object:
    """Return what a call makes: a dict or list of the standard library, or a `Call`."""
    first = arguments[0] if isinstance(arguments, tuple) and arguments else []
    name = callee.text if isinstance(callee, Name) and isinstance(first, list) else ""
    if name == "collections OrderedDict":  # of pairs, as Python 2 wrote it
        return {pair[0]: pair[1] for pair in first if _is_pair(pair)}
    if name in _SETS:
        return first
    return Call(callee, arguments)


def _is_pair(value: object) -> bool:
    return isinstance(value, list | tuple) and len(value) == 2 and isinstance(value[0], str | int)
