"""Paths in made memory: what no guest does by itself, and what a hostile one may do."""

import pytest

from live.linux.paths import PathReader, PathRef
from tests.linux.synthetic import RAM, SyntheticGuest

VFSMOUNT = 16


class Tree:
    """Mounts and dentries in a synthetic guest."""

    def __init__(self, guest):
        self.guest = guest
        self.root = self.mount(self.dentry(None, b""))

    def dentry(self, parent, name, *, hashed=1, inline=False, **values):
        guest = self.guest
        dentry = guest.new("dentry", **values)
        guest.set(dentry, "dentry", d_parent=parent or dentry)
        text = dentry + 56 if inline else guest.allocate(len(name) + 1)
        start = guest.gpa(text)
        guest.ram[start : start + len(name)] = name
        for offset, form, value in ((36, "<I", len(name)), (40, "<Q", text), (8, "<Q", hashed)):
            guest.put(dentry + offset, form, value)
        return dentry

    def mount(self, root, at=None):
        """A mount that shows the dentry ``root``, ``at`` a path or nowhere."""
        mount = self.guest.new("mount")
        above, mountpoint = (at.mnt - VFSMOUNT, at.dentry) if at else (mount, root)
        self.guest.set(mount, "mount", mnt_parent=above, mnt_mountpoint=mountpoint)
        self.guest.put(mount + VFSMOUNT, "<Q", root)
        return PathRef(mount + VFSMOUNT, root)

    def below(self, path, *names, **how):
        for name in names:
            path = path._replace(dentry=self.dentry(path.dentry, name, **how))
        return path

    def text(self, path, root=None):
        return PathReader(self.guest.kernel()).text(path, root or self.root)


@pytest.fixture(params=[True, False], ids=["mapped", "copied"])
def tree(request, tmp_path):
    return Tree(SyntheticGuest(tmp_path, mapped=request.param))


@pytest.mark.parametrize("inline", [True, False])
def test_names_are_read_wherever_they_are(tree, inline):
    assert tree.text(tree.below(tree.root, b"usr", b"bin", b"\xff", inline=inline)) == "/usr/bin/\udcff"


def test_a_name_that_claims_to_be_longer_than_its_place_is_not_cut(tree):
    path = tree.below(tree.root, b"x" * 31, inline=True)
    tree.guest.put(path.dentry + 36, "<I", 39)
    assert tree.text(path) == "/" + "x" * 31 + "\0" * 8


def test_a_path_goes_on_at_the_mountpoint_from_the_root_of_the_mount(tree):
    sub = tree.below(tree.root, b"srv", b"sub")
    data = tree.mount(sub.dentry, tree.below(tree.root, b"data"))
    assert tree.text(tree.below(data, b"tool")) == "/data/tool"
    assert tree.text(data) == "/data"
    # The process's root is a name that was moved above the root of the mount that it belongs to.
    inside = tree.below(data, b"x", b"y")
    tree.guest.put(sub.dentry + 24, "<Q", inside.dentry)
    tool = tree.below(data, b"tool")
    assert tree.text(tool, inside) == "(unreachable)/data/tool"


@pytest.mark.parametrize(
    ("names", "hashed", "readable"),
    [
        ([b"n" * 255] * 15 + [b"n" * 254], 1, True),  # 4095 bytes, and a NUL
        ([b"n" * 255] * 16, 1, False),
        ([b"n" * 255] * 15 + [b"n" * 244], 0, True),
        ([b"n" * 255] * 15 + [b"n" * 245], 0, False),
        ([b"d"] * 2047, 1, True),
        ([b"d"] * 2048, 1, False),
    ],
)
def test_path_max_is_bytes_with_the_nul(tree, names, hashed, readable):
    path = tree.below(tree.root, *names[:-1])
    path = tree.below(path, names[-1], hashed=hashed)
    text = "/" + b"/".join(names).decode() + " (deleted)" * (not hashed)
    assert (len(text) < 4096) == readable
    assert tree.text(path) == (text if readable else None)


def test_mounts_upon_mounts_are_many_but_not_endless(tree):
    top = tree.root
    for _ in range(1000):
        top = tree.mount(tree.dentry(None, b""), top)
    assert tree.text(tree.below(top, b"file")) == "/file"
    first = tree.mount(tree.dentry(None, b""), tree.root)
    second = tree.mount(tree.dentry(None, b""), first)
    tree.guest.set(
        first.mnt - VFSMOUNT, "mount", mnt_parent=second.mnt - VFSMOUNT, mnt_mountpoint=second.dentry
    )
    assert tree.text(tree.below(first, b"file")) is None


@pytest.mark.parametrize("length", [0, 1, 1 << 31, (1 << 32) - 1])
def test_a_loop_of_names_is_no_path(tree, length):
    path = tree.below(tree.root, b"a", b"b")
    above = tree.dentry(path.dentry, b"x")
    tree.guest.set(path.dentry, "dentry", d_parent=above)
    assert tree.text(path) is None
    for each in (path.dentry, above):
        tree.guest.put(each + 36, "<I", length)
    assert tree.text(path) is None


def test_what_cannot_be_read_is_not_a_shorter_path(tree):
    path = tree.below(tree.root, b"a", b"b", b"c")
    gone = tree.guest.gpa(path.dentry) + RAM  # not in RAM
    assert tree.text(path) == "/a/b/c"
    assert tree.text(PathRef(gone, path.dentry)) is None
    assert tree.text(PathRef(path.mnt, gone)) is None
    assert PathReader(tree.guest.kernel()).text(path, None) is None
    tree.guest.put(path.dentry + 40, "<Q", gone)
    assert tree.text(path) is None
    mounted = tree.mount(tree.dentry(None, b""), PathRef(tree.root.mnt, gone))
    assert tree.text(tree.below(mounted, b"file")) is None


def test_a_root_directory_may_be_deleted(tree):
    jail = tree.below(tree.root, b"jail", hashed=0)
    assert tree.text(jail, jail) == "/ (deleted)"
    assert tree.text(tree.root) == "/"


def operations(guest, function):
    return guest.new("dentry_operations", d_dname=guest.global_(function) if function else 0)


def test_a_file_without_a_place_has_a_made_name(tree):
    guest = tree.guest
    inner = tree.mount(tree.dentry(None, b"tmpfs"))
    simple, pipe, plain = (operations(guest, name) for name in ("simple_dname", "pipefs_dname", None))
    memfd = tree.dentry(None, b"memfd:ghost", hashed=0, d_op=simple)
    assert tree.text(inner._replace(dentry=memfd)) == "/memfd:ghost (deleted)"
    end = tree.dentry(None, b"", hashed=0, d_op=pipe, d_inode=guest.new("inode", i_ino=77))
    assert tree.text(inner._replace(dentry=end)) == "pipe:[77]"
    # Mounted, it has a path (d_path() in fs/d_path.c).
    mounted = tree.mount(end, tree.below(tree.root, b"ns"))
    assert tree.text(mounted) == "/ns"
    for operation in (plain, 0):
        lone = tree.dentry(None, b"x", d_op=operation)
        assert tree.text(inner._replace(dentry=lone)) == "(unreachable)/"
    guest.put(memfd + 36, "<I", 256)
    assert tree.text(inner._replace(dentry=memfd)) is None


def test_a_name_made_by_an_unknown_function_is_unreadable(tree):
    inner = tree.mount(tree.dentry(None, b""))
    strange = tree.dentry(None, b"x", d_op=operations(tree.guest, "init_task"))
    assert tree.text(inner._replace(dentry=strange)) is None


def test_without_the_types_of_made_names_a_lone_file_is_unreadable(tmp_path):
    tree = Tree(SyntheticGuest(tmp_path, drop={"dentry.d_op", "dentry.d_iname"}))
    assert tree.text(tree.below(tree.root, b"usr", b"x")) == "/usr/x"
    inner = tree.mount(tree.dentry(None, b""))
    assert tree.text(inner._replace(dentry=tree.dentry(None, b"x"))) is None
