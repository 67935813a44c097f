"""Personal data: a table of what is some and what is none, in English and Chinese; masking leaves the rest alone."""

import string
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlhf_kit.curation.personal import TAGS, Personal
from rlhf_kit.errors import RlhfKitError
from rlhf_kit.records import Demonstration, Message, Prompt, Ranking, Rating, Response, Text

PERSONAL = Personal()
WITH_IP = Personal(ip_addresses=True)

# Numbers that documentation and regulators publish as examples, or made here with the check digits worked out by hand.
TRUE = [
    ("Write to jane.doe+x@mail.example.co.uk, please.", "Write to [EMAIL], please."),
    ("(jane_doe@example.com)", "([EMAIL])"),
    ("邮箱zhang.san@example.cn谢谢", "邮箱[EMAIL]谢谢"),
    ("邮箱：ｚｈａｎｇ＠ｅｘａｍｐｌｅ．ｃｎ。", "邮箱：[EMAIL]。"),
    ("Call (212) 555-0142 today", "Call [PHONE] today"),
    ("212-555-0142", "[PHONE]"),
    ("My number is 212.555.0142.", "My number is [PHONE]."),
    ("phone: 2125550142", "phone: [PHONE]"),
    ("Telephone no. 212-555-0142", "Telephone no. [PHONE]"),
    ("phone #2125550142", "phone #[PHONE]"),
    ("reach me on +44 20 7946 0958", "reach me on [PHONE]"),
    ("Room 5 +8613812345678", "Room 5 [PHONE]"),
    ("020 7946 0958", "[PHONE]"),
    ("电话13812345678。", "电话[PHONE]。"),
    ("我叫王芳，13812345678，住在北京", "我叫王芳，[PHONE]，住在北京"),
    ("请拨打010-62345678咨询", "请拨打[PHONE]咨询"),
    ("手机１３８１２３４５６７８号", "手机[PHONE]号"),
    ("138 1234 5678", "[PHONE]"),
    ("联系方式：+86 138-1234-5678", "联系方式：[PHONE]"),
    ("card 4111 1111 1111 1111 exp", "card [CARD] exp"),
    ("4111-1111-1111-1111", "[CARD]"),
    ("5555555555554444", "[CARD]"),
    ("Amex 3782 822463 10005", "Amex [CARD]"),
    ("卡号6212345678901265是我的", "卡号[CARD]是我的"),
    ("SSN 536-90-4399.", "SSN [ID]."),
    ("His social security number is 536904399", "His social security number is [ID]"),
    ("身份证11010519491231002X，请查收", "身份证[ID]，请查收"),
    ("身份证号是440308199901101512吗", "身份证号是[ID]吗"),
    ("Pay to DE89 3704 0044 0532 0130 00 TODAY", "Pay to [IBAN] TODAY"),
    ("GB29NWBK60161331926819", "[IBAN]"),
    ("账户GB29 NWBK 6016 1331 9268 19的余额", "账户[IBAN]的余额"),
    ("key AKIAIOSFODNN7EXAMPLE here", "key [KEY] here"),
    ("OPENAI=sk-proj-abcDEF123456ghiJKL789", "OPENAI=[KEY]"),
    ("密钥sk-abcdefghij0123456789ABCD泄露了", "密钥[KEY]泄露了"),
    ("ghp_" + "a1B2" * 9, "[KEY]"),
    ("Authorization: Bearer abcdef0123456789abcdef", "Authorization: [KEY]"),
    ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.dBjftJeZ4CVP-mB92K27uh", "[KEY]"),
    ("a\n-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n+/=\n-----END RSA PRIVATE KEY-----\nb", "a\n[KEY]\nb"),
    ("-----BEGIN PRIVATE KEY-----\nMIIEow==\n", "[KEY]"),
]

FALSE = [
    "In 1999, 2008 and 2012 it cost $1,234.56, then 1,234,567,890 in all.",
    "pi is 3.14159265358979 and e is 2.71828182845904",
    "0.0496130162728",
    "Install torch 2.11.0 and numpy 1.26.4; python 3.11.7 is too new for 10.0.19041.1237",
    "Natalia sold 48/2 = <<48/2=24>>24 clips.\nShe sold 48+24 = <<48+24=72>>72 clips.\n#### 72",
    "16-3-4 eggs; 9 * 2 = $18; 2000-3000-4000",
    "84834150134 - 6778576 = -16666579378",
    "= 3600000000000 + 62426244000 + 198472480000",
    "821091117+4908374100427",
    "= 4532015112830366",
    "Order 2125550142 was shipped",
    "订单号13812345678已发货",
    "item no. 2125550142",
    "Contact us about order 2125550142",
    "订单编号：6212345678901234",
    "Your ticket is 240 360 4800 9",
    "1700000000 1700000000000 seconds",
    "ISBN 978-3-16-148410-0",
    "2023-10-11 12:30:45, 2023/10/11, 11.10.2023, 20231011",
    "号码4111111111111112",  # Luhn fails
    "4111 1111 1111 1112",
    "110105194912310021",  # the check character is X
    "99999919491231002X",  # no such county
    "SSN 000-12-3456, 666-12-3456, 536-00-4399",
    "536904399",  # nothing says what it is
    "DE88 3704 0044 0532 0130 00",  # check digits
    "AKIA and sk-learn, the task-management-strategies-for-teams of 2024, risk-free",
    "Bearer of bad news, bearerofbadnews0123456789",
    "@user mentioned user@localhost and 5@3",
    "The populations are 331002651 and 1402112000.",
    "一共有1402112000人，其中20岁以下的有3310026人，价格是12345.67元",
    "第3章第12节，公元1368年至1644年",
    "f(x) = 4x^3 - 12x + 16, x in [0, 100000000]",
    "0123456789",
    "tracking 1Z999AA10123456784",
    "550e8400-e29b-41d4-a716-446655440000",
]


@pytest.mark.parametrize(("text", "masked"), TRUE)
def test_what_is_personal_is_masked_and_nothing_beside_it(text, masked):
    assert PERSONAL.masked(text, Counter()) == masked


@pytest.mark.parametrize("text", FALSE)
def test_ordinary_numbers_are_left_alone(text):
    assert PERSONAL.find(text) == []


def test_ip_addresses_are_an_option():
    for text, masked in [
        ("ping 192.168.100.1 now", "ping [IP] now"),
        ("地址是8.8.8.8。", "地址是[IP]。"),
        ("2001:db8::8a2e:370:7334", "[IP]"),
    ]:
        assert PERSONAL.find(text) == []
        assert WITH_IP.masked(text, Counter()) == masked
    for text in ("version 1.2.3.4", "300.1.1.1", "1.2.3.4.5", "10:30", "a::b", "12:30:45"):
        assert WITH_IP.find(text) == []


def test_regions_decide_where_a_number_without_country_code_may_belong():
    paris = "Tél. 01 70 18 99 00"
    assert PERSONAL.find(paris) == []
    assert Personal(("FR",)).masked(paris, Counter()) == "Tél. [PHONE]"
    with pytest.raises(RlhfKitError, match="XX"):
        Personal(("XX",))


SECRET = "mail a@example.com"
MASKED = "mail [EMAIL]"


def test_every_text_of_a_record_and_of_its_meta_is_masked_and_nothing_else():
    turns = (Message(role="user", content=SECRET),)
    meta = {"note": SECRET, "deep": [{"a@example.com": SECRET}], "number": 4111111111111111}
    masked_meta = {"note": MASKED, "deep": [{"a@example.com": MASKED}], "number": 4111111111111111}
    masked_turns = (Message(role="user", content=MASKED),)
    names = {"user_id": "a@example.com", "labeler": "anna", "id": "1"}
    responses = tuple(Response(text=SECRET, rank=rank, source="a@example.com", overall=3) for rank in (1, 2))
    masked_responses = tuple(Response(text=MASKED, rank=rank, source="a@example.com", overall=3) for rank in (1, 2))
    for record, expected, count in [
        (
            Ranking(prompt=turns, responses=responses, meta=meta, **names),
            Ranking(prompt=masked_turns, responses=masked_responses, meta=masked_meta, **names),
            5,
        ),
        (Demonstration(prompt=SECRET, completion=SECRET), Demonstration(prompt=MASKED, completion=MASKED), 2),
        (Prompt(prompt=SECRET, meta=meta), Prompt(prompt=MASKED, meta=masked_meta), 3),
        (Rating(prompt=SECRET, response=SECRET, score=1.0), Rating(prompt=MASKED, response=MASKED, score=1.0), 2),
        (Text(text=SECRET, source="web"), Text(text=MASKED, source="web"), 1),
    ]:
        masked, counts = PERSONAL.masked_record(record)
        assert masked == expected
        assert counts == {"email": count}


def test_a_record_without_anything_personal_stays_the_very_same():
    record = Demonstration(prompt="What is 17 * 23?", completion="391", meta={"year": "1999"})
    masked, counts = PERSONAL.masked_record(record)
    assert masked is record
    assert not counts


def test_names_that_are_addresses_are_counted():
    personal = Personal()
    personal.masked_record(Prompt(prompt="Hi", user_id="a@example.com"))
    personal.masked_record(Prompt(prompt="Hi", user_id="user-17"))
    assert personal.named == 1


@settings(max_examples=300, deadline=None)
@given(st.lists(st.sampled_from([text for text, _ in TRUE] + FALSE + list(string.punctuation + "中文5 ")), max_size=4))
def test_masking_changes_only_what_was_found(pieces):
    text = " ".join(pieces)
    found = WITH_IP.find(text)
    assert all(0 <= one.start < one.end <= len(text) for one in found)
    assert all(one.end <= other.start for one, other in pairwise(found))
    rest, masked = text, WITH_IP.masked(text, Counter())
    for one in reversed(found):
        rest = rest[: one.start] + TAGS[one.kind] + rest[one.end :]
    assert masked == rest


@settings(max_examples=200, deadline=None)
@given(st.text(max_size=200))
def test_no_text_is_too_odd(text):
    WITH_IP.find(text)
