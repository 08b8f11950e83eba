"""Claims about a storage's URL: what is not one is refused, and a password is never printed."""

import pytest

from tuner.storage import shown, sqlite_path


@pytest.mark.parametrize(
    ("url", "printed"),
    [
        ("sqlite:///a b.db", "sqlite:///a b.db"),
        ("postgresql+psycopg://me:secret@host:5432/db", "postgresql+psycopg://me:***@host:5432/db"),
        ("postgresql://me:sec/re%40t@host/db?sslmode=require", "postgresql://me:***@host/db?sslmode=require"),
        ("mysql+pymysql://host/db?user=me&passwd=secret", "mysql+pymysql://host/db?user=me"),
        ("postgresql://host/db?Password=secret&sslpassword=secret", "postgresql://host/db"),
    ],
)
def test_a_url_is_printed_without_its_passwords(url, printed):
    assert shown(url) == printed


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("study.db", "storage: must be a database URL, got 'study.db'; write sqlite:///study.db"),
        ("postgresql//me:secret@host/db", "storage: must be a database URL, got '***@host/db'; write sqlite:"),
        ("postgresql://me:secret@host:port/db", "storage: must be a database URL, got '***@host:port/db'; write"),
        ("postgresql://me:se@cret@host/db", "storage: a URL has one @, before its host, got two; write that of"),
    ],
)
def test_what_is_not_a_url_is_refused_without_what_may_be_a_password(url, said):
    with pytest.raises(ValueError, match=r"^storage: ") as caught:
        shown(url)
    assert str(caught.value).startswith(said)


@pytest.mark.parametrize(
    ("url", "path"),
    [
        ("sqlite:///a.db", "a.db"),
        ("sqlite:////tmp/a.db", "/tmp/a.db"),
        ("sqlite://", None),
        ("sqlite:///:memory:", None),
        ("postgresql://host/a.db", None),
        (None, None),
    ],
)
def test_only_a_sqlite_file_has_a_path(url, path):
    found = sqlite_path(url)
    assert (found and str(found)) == path
