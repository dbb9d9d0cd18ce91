//! Queries taken apart and responses put together: pure, from bytes to bytes. Not here: what names answer (`zone`), and
//! how the bytes travel.
//!
//! What is forwarded stays the bytes that the client sent, and so does what comes back; only IDs are rewritten.

use std::ops::Range;
use std::time::Instant;

use hickory_proto::op::{Edns, Header, Message, MessageType, OpCode, Query, ResponseCode, emit_message_parts};
use hickory_proto::rr::{DNSClass, Record, RecordType};
use hickory_proto::serialize::binary::{BinDecodable, BinDecoder, BinEncoder, DecodeError};

use super::inside::{self, View};
use super::zone::{self, Answer, Zone};

/// Longest query that is looked at. An ordinary one has some fifty bytes, one with a long name and options a few hundred.
pub(super) const MAX_QUERY_BYTES: usize = 4096;
/// Largest answer of ours over UDP: what passes any network without fragments (DNS flag day 2020).
const MAX_UDP_BYTES: u16 = 1232;
/// Largest forwarded answer over UDP; upstream was told the client's own limit.
const MAX_FORWARDED_UDP_BYTES: u16 = 4096;
/// What every client takes over UDP.
const MIN_UDP_BYTES: u16 = 512;
const HEADER_BYTES: usize = 12;
/// An OPT record without options.
const OPT_BYTES: u16 = 11;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Udp,
    Tcp,
}

/// What is to become of a client's message.
#[derive(Debug)]
pub enum Response {
    /// Not a query, or too short to be told so: answering could start a loop.
    Ignore,
    Reply {
        bytes: Vec<u8>,
        /// The response code, its EDNS part included.
        code: u16,
    },
    /// A good query for a name that is not ours.
    Forward(Box<Request>),
}

/// A query that could be understood.
#[derive(Debug, Clone)]
pub struct Request {
    header: Header,
    question: Query,
    edns: Option<Edns>,
    transport: Transport,
    /// Where the question's bytes lie in the message.
    question_range: Range<usize>,
}

/// Answers a message from a client, as far as that can be done here. `view`: what the client sees, if that is a task.
pub fn respond(
    message: &[u8],
    transport: Transport,
    zone: &Zone<'_>,
    view: Option<&View>,
    now: Instant,
    rng: &mut fastrand::Rng,
) -> Response {
    let request = match Request::parse(message, transport) {
        Ok(request) => request,
        Err(response) => return response,
    };
    let answer = match view {
        Some(view) => inside::answer(&request.question, zone, view, now, rng),
        None => zone::answer(&request.question, zone, now, rng),
    };
    match answer {
        Answer::NotOurs => Response::Forward(Box::new(request)),
        Answer::Records(records) => request.reply(ResponseCode::NoError, records, None),
        Answer::Nothing(soa) => request.reply(ResponseCode::NoError, Vec::new(), Some(*soa)),
    }
}

impl Request {
    /// Takes a message apart. `Err` holds what there is to say about a message that is no query for records.
    fn parse(message: &[u8], transport: Transport) -> Result<Request, Response> {
        let mut decoder = BinDecoder::new(message);
        let Ok(header) = Header::read(&mut decoder) else {
            return Err(Response::Ignore);
        };
        if header.message_type == MessageType::Response {
            return Err(Response::Ignore);
        }
        if header.op_code != OpCode::Query {
            return Err(reply_to_header(&header, ResponseCode::NotImp));
        }
        let Ok((question, question_range, edns)) = read_sections(message, &mut decoder, &header) else {
            return Err(reply_to_header(&header, ResponseCode::FormErr));
        };
        let request = Request {
            header,
            question,
            edns,
            transport,
            question_range,
        };
        if request.edns.as_ref().is_some_and(|edns| edns.version() != 0) {
            return Err(request.fail(ResponseCode::BADVERS));
        }
        let is_transfer = matches!(request.question.query_type, RecordType::AXFR | RecordType::IXFR);
        if is_transfer || request.question.query_class != DNSClass::IN {
            // Neither has an answer of one message that could be passed on, or any here (version.bind is not ours).
            return Err(request.fail(ResponseCode::Refused));
        }
        Ok(request)
    }

    pub(super) fn transport(&self) -> Transport {
        self.transport
    }

    /// The response that has only a code to say.
    pub(super) fn fail(&self, code: ResponseCode) -> Response {
        self.reply(code, Vec::new(), None)
    }

    /// Makes an answer from upstream the client's own: its ID, and no more than it takes.
    pub(super) fn pass_on(&self, mut answer: Vec<u8>) -> Vec<u8> {
        let limit = match self.transport {
            Transport::Udp => self.payload().clamp(MIN_UDP_BYTES, MAX_FORWARDED_UDP_BYTES),
            Transport::Tcp => u16::MAX,
        };
        if answer.len() > usize::from(limit) {
            // Header and question are as in the query; the rest is to be asked for again by TCP.
            answer.truncate(self.question_range.end);
            if let Some(flags) = answer.get_mut(2) {
                *flags |= FLAG_TRUNCATED;
            }
            if let Some(counts) = answer.get_mut(6..HEADER_BYTES) {
                counts.fill(0);
            }
        }
        set_id(&mut answer, self.header.id);
        answer
    }

    /// What the client says it takes over UDP.
    fn payload(&self) -> u16 {
        self.edns.as_ref().map_or(MIN_UDP_BYTES, Edns::max_payload)
    }

    fn reply(&self, code: ResponseCode, answers: Vec<Record>, authority: Option<Record>) -> Response {
        let limit = match self.transport {
            Transport::Udp => self.payload().clamp(MIN_UDP_BYTES, MAX_UDP_BYTES),
            Transport::Tcp => u16::MAX,
        };
        let mut message = response_to(&self.header, code);
        message.metadata.authoritative = code == ResponseCode::NoError;
        message.queries.push(self.question.clone());
        message.answers = answers;
        message.authorities.extend(authority);
        message.edns = self.edns.as_ref().map(|asked| {
            let mut edns = Edns::new();
            edns.set_max_payload(MAX_UDP_BYTES)
                .set_dnssec_ok(asked.flags().dnssec_ok);
            edns
        });
        encode(message, limit, self.transport)
    }
}

/// The one question, where it lies, and the OPT record.
fn read_sections(
    message: &[u8],
    decoder: &mut BinDecoder<'_>,
    header: &Header,
) -> Result<(Query, Range<usize>, Option<Edns>), Malformed> {
    if header.counts.queries != 1 {
        return Err(Malformed);
    }
    // A name that is compressed here could only point into the header.
    let question_end = question_end(message).ok_or(Malformed)?;
    let question = Query::read(decoder)?;
    let counts = &header.counts;
    Message::read_records(decoder, counts.answers.into(), false, header.op_code)?;
    Message::read_records(decoder, counts.authorities.into(), false, header.op_code)?;
    let (_, edns, _) = Message::read_records(decoder, counts.additionals.into(), true, header.op_code)?;
    Ok((question, HEADER_BYTES..question_end, edns))
}

/// What follows the header is no query.
struct Malformed;

impl From<DecodeError> for Malformed {
    fn from(_: DecodeError) -> Malformed {
        Malformed
    }
}

impl From<hickory_proto::ProtoError> for Malformed {
    fn from(_: hickory_proto::ProtoError) -> Malformed {
        Malformed
    }
}

fn response_to(header: &Header, code: ResponseCode) -> Message {
    let mut message = Message::response(header.id, header.op_code);
    message.metadata.response_code = code;
    message.metadata.recursion_desired = header.recursion_desired;
    message.metadata.recursion_available = true;
    message
}

fn reply_to_header(header: &Header, code: ResponseCode) -> Response {
    encode(response_to(header, code), MIN_UDP_BYTES, Transport::Udp)
}

/// Encodes `message` in at most `limit` bytes, with fewer answers if it must be.
fn encode(mut message: Message, limit: u16, transport: Transport) -> Response {
    let code = u16::from(message.metadata.response_code);
    let Some((mut bytes, header)) = emit(&message, limit, message.edns.as_ref()) else {
        return Response::Ignore;
    };
    if header.truncation {
        // The OPT record comes last and must not be what is lost: how many answers fit before it?
        message.authorities.clear();
        let Some((_, header)) = emit(&message, limit - OPT_BYTES, None) else {
            return Response::Ignore;
        };
        message.answers.truncate(header.counts.answers.into());
        // Over TCP there is no other way to ask; a random choice of very many addresses is an answer.
        message.metadata.truncation = transport == Transport::Udp;
        let Some(again) = emit(&message, limit, message.edns.as_ref()) else {
            return Response::Ignore;
        };
        bytes = again.0;
    }
    Response::Reply { bytes, code }
}

fn emit(message: &Message, limit: u16, edns: Option<&Edns>) -> Option<(Vec<u8>, Header)> {
    let mut bytes = Vec::with_capacity(usize::from(MIN_UDP_BYTES));
    let mut encoder = BinEncoder::new(&mut bytes);
    encoder.set_max_size(limit);
    let header = emit_message_parts(
        &message.metadata,
        &mut message.queries.iter(),
        &mut message.answers.iter(),
        &mut message.authorities.iter(),
        &mut message.additionals.iter(),
        edns,
        None,
        &mut encoder,
    )
    .ok()?;
    // A record that did not fit may have left its beginning behind.
    encoder.trim();
    Some((bytes, header))
}

const FLAG_RESPONSE: u8 = 0x80;
const FLAG_TRUNCATED: u8 = 0x02;

pub(super) fn set_id(message: &mut [u8], id: u16) {
    if let Some(bytes) = message.get_mut(..2) {
        bytes.copy_from_slice(&id.to_be_bytes());
    }
}

/// The code of `answer` (without its EDNS part, which no code has that matters here), if it answers `query`, which was
/// sent with `id`. Late, strayed and forged ones do not.
pub(super) fn check_answer(query: &[u8], request: &Request, id: u16, answer: &[u8]) -> Option<u16> {
    let (header, question) = answer.split_at_checked(HEADER_BYTES)?;
    let code = u16::from(header[3] & 0x0f);
    if header[..2] != id.to_be_bytes() || header[2] & FLAG_RESPONSE == 0 {
        return None;
    }
    let n_questions = u16::from_be_bytes([header[4], header[5]]);
    if n_questions == 0 && code != 0 && code != 3 {
        // Servers that could not or would not read the question do not repeat it.
        return Some(code);
    }
    let asked = query.get(request.question_range.clone())?;
    let repeated = question.get(..asked.len())?;
    // Servers may respell names, but type and class are numbers.
    let (asked_name, asked_type) = asked.split_at_checked(asked.len().checked_sub(4)?)?;
    let (repeated_name, repeated_type) = repeated.split_at_checked(asked_name.len())?;
    let is_same = n_questions == 1 && asked_name.eq_ignore_ascii_case(repeated_name) && asked_type == repeated_type;
    is_same.then_some(code)
}

/// Where the first question of `message` ends, if its name is written out.
fn question_end(message: &[u8]) -> Option<usize> {
    let mut at = HEADER_BYTES;
    loop {
        match *message.get(at)? {
            0 => break,
            length if length < 64 => at += 1 + usize::from(length),
            _ => return None,
        }
    }
    let end = at + 5;
    (end <= message.len()).then_some(end)
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::dns::reverse::ReverseIndex;
    use crate::dns::zone::tests::{commit, table, upsert};
    use crate::routing::TableHandle;
    use hickory_proto::rr::{Name, RData};
    use proptest::prelude::*;

    /// A query as a client writes it; `payload`: with an OPT record.
    pub(in crate::dns) fn query(id: u16, name: &str, kind: RecordType, payload: Option<u16>) -> Vec<u8> {
        message(id, name, kind, payload).to_vec().unwrap()
    }

    fn message(id: u16, name: &str, kind: RecordType, payload: Option<u16>) -> Message {
        let mut message = Message::new(id, MessageType::Query, OpCode::Query);
        message.metadata.recursion_desired = true;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        if let Some(payload) = payload {
            let mut edns = Edns::new();
            edns.set_max_payload(payload);
            message.set_edns(edns);
        }
        message
    }

    fn respond_with(handle: &TableHandle, bytes: &[u8], transport: Transport) -> Response {
        let table = handle.load();
        let reverse = ReverseIndex::new(&table);
        let zone = Zone {
            table: &table,
            reverse: &reverse,
            has_vips: true,
        };
        respond(
            bytes,
            transport,
            &zone,
            None,
            Instant::now(),
            &mut fastrand::Rng::with_seed(3),
        )
    }

    fn reply(handle: &TableHandle, bytes: &[u8], transport: Transport) -> (Message, usize) {
        match respond_with(handle, bytes, transport) {
            Response::Reply { bytes, code } => {
                let message = Message::from_vec(&bytes).unwrap();
                assert_eq!(u16::from(message.response_code), code);
                (message, bytes.len())
            }
            other => panic!("no reply: {other:?}"),
        }
    }

    #[test]
    fn a_reply_repeats_the_question_as_it_was_spelled() {
        let (reply, _) = reply(&table(), &query(77, "mY-wEb.", RecordType::A, None), Transport::Udp);
        assert_eq!((reply.id, reply.message_type), (77, MessageType::Response));
        assert!(reply.authoritative && reply.recursion_desired && reply.recursion_available && !reply.truncation);
        assert!(reply.queries[0].name.eq_case(&Name::from_ascii("mY-wEb.").unwrap()));
        assert!(reply.answers[0].name.eq_case(&Name::from_ascii("mY-wEb.").unwrap()));
        assert!(reply.edns.is_none());
    }

    #[test]
    fn a_type_that_a_name_lacks_is_no_error_and_comes_with_a_soa() {
        let bytes = query(1, "tasks.my-web.", RecordType::MX, Some(1232));
        let (reply, _) = reply(&table(), &bytes, Transport::Udp);
        assert_eq!((reply.response_code, reply.answers.len()), (ResponseCode::NoError, 0));
        let soa = &reply.authorities[0];
        assert_eq!(soa.name, Name::from_ascii("my-web.").unwrap());
        assert!(matches!(&soa.data, RData::SOA(soa) if soa.minimum == 0));
        assert_eq!(reply.edns.as_ref().map(Edns::max_payload), Some(1232));
    }

    #[test]
    fn what_is_no_query_for_records_is_told_so() {
        let handle = table();
        let good = message(9, "my-web.", RecordType::A, None);
        let code = |message: &Message| {
            reply(&handle, &message.to_vec().unwrap(), Transport::Udp)
                .0
                .response_code
        };
        for (op_code, expect) in [
            (OpCode::Status, ResponseCode::NotImp),
            (OpCode::Notify, ResponseCode::NotImp),
            (OpCode::Unknown(9), ResponseCode::NotImp),
            (OpCode::Query, ResponseCode::NoError),
        ] {
            let mut asked = good.clone();
            asked.metadata.op_code = op_code;
            assert_eq!(code(&asked), expect, "{op_code}");
        }
        let mut twice = good.clone();
        twice.add_query(good.queries[0].clone());
        assert_eq!(code(&twice), ResponseCode::FormErr);
        let mut none = good.clone();
        none.queries.clear();
        assert_eq!(code(&none), ResponseCode::FormErr);
        for (kind, class) in [
            (RecordType::TXT, DNSClass::CH),
            (RecordType::A, DNSClass::ANY),
            (RecordType::AXFR, DNSClass::IN),
        ] {
            let mut refused = good.clone();
            refused.queries[0].query_type = kind;
            refused.queries[0].query_class = class;
            assert_eq!(code(&refused), ResponseCode::Refused);
        }
        let mut next_version = message(9, "my-web.", RecordType::A, Some(1232));
        if let Some(edns) = &mut next_version.edns {
            edns.set_version(1);
        }
        let (told, _) = reply(&handle, &next_version.to_vec().unwrap(), Transport::Udp);
        assert_eq!(u16::from(told.response_code), 16, "BADVERS");
        assert_eq!(told.edns.as_ref().map(Edns::version), Some(0));
    }

    #[test]
    fn garbage_with_a_header_is_a_format_error_and_less_is_ignored() {
        let handle = table();
        let good = query(0x0102, "my-web.", RecordType::A, Some(1232));
        for len in 0..good.len() {
            match respond_with(&handle, &good[..len], Transport::Udp) {
                Response::Ignore => assert!(len < HEADER_BYTES, "{len}"),
                Response::Reply { bytes, code } => {
                    assert!(len >= HEADER_BYTES && code == 1, "{len}");
                    assert_eq!(bytes[..2], [1, 2]);
                }
                Response::Forward(_) => panic!("forwarded {len} bytes"),
            }
        }
        let mut pointing = good.clone();
        pointing[12] = 0xc0;
        assert!(matches!(
            respond_with(&handle, &pointing, Transport::Udp),
            Response::Reply { code: 1, .. }
        ));
        let mut answered = good;
        answered[2] |= FLAG_RESPONSE;
        assert!(matches!(
            respond_with(&handle, &answered, Transport::Udp),
            Response::Ignore
        ));
    }

    #[test]
    fn an_answer_fits_what_the_client_takes_and_keeps_its_opt() {
        let handle = TableHandle::default();
        let endpoints: Vec<String> = (0..5000).map(|i| format!("10.0.{}.{}:80", i / 250, i % 250)).collect();
        let endpoints: Vec<&str> = endpoints.iter().map(String::as_str).collect();
        commit(&handle, &[upsert("big", None, &endpoints)]);
        for (payload, limit) in [(None, 512), (Some(100), 512), (Some(700), 700), (Some(9000), 1232)] {
            let bytes = query(1, "tasks.big.", RecordType::A, payload);
            let (reply, len) = reply(&handle, &bytes, Transport::Udp);
            assert!(len <= limit && len > limit - 32, "{len} of {limit}");
            assert!(reply.truncation);
            assert_eq!(reply.edns.is_some(), payload.is_some());
        }
        let bytes = query(1, "tasks.big.", RecordType::A, Some(1232));
        let (reply, len) = reply(&handle, &bytes, Transport::Tcp);
        assert!(len > 60_000 && !reply.truncation && reply.edns.is_some());
        assert!(reply.answers.len() > 2000);
    }

    fn forwarded(bytes: &[u8], transport: Transport) -> Request {
        match respond_with(&table(), bytes, transport) {
            Response::Forward(request) => *request,
            other => panic!("not forwarded: {other:?}"),
        }
    }

    #[test]
    fn only_the_answer_to_what_was_asked_is_taken() {
        let asked = query(5, "example.org.", RecordType::A, None);
        let request = forwarded(&asked, Transport::Udp);
        let mut good = asked.clone();
        good[2] |= FLAG_RESPONSE;
        let taken = |answer: &[u8]| check_answer(&asked, &request, 5, answer);
        assert_eq!(taken(&good), Some(0));
        let changed = |at: usize, to: u8| {
            let mut answer = good.clone();
            answer[at] = to;
            answer
        };
        assert_eq!(taken(&changed(3, 3)), Some(3));
        assert_eq!(taken(&changed(13, b'E')), Some(0), "respelled");
        assert_eq!(taken(&changed(1, 6)), None, "another ID");
        assert_eq!(taken(&changed(2, 0)), None, "a query");
        assert_eq!(taken(&changed(13, b'f')), None, "another name");
        assert_eq!(taken(&changed(good.len() - 3, 28)), None, "another type");
        assert_eq!(taken(&changed(5, 0)), None, "no question, and yet an answer");
        let mut refused = changed(5, 0);
        refused[3] = 5;
        assert_eq!(taken(&refused[..HEADER_BYTES]), Some(5));
        for len in 0..good.len() {
            assert_eq!(taken(&good[..len]), None);
        }
    }

    #[test]
    fn an_answer_from_upstream_is_cut_to_what_the_client_takes() {
        let asked = query(5, "example.org.", RecordType::A, Some(600));
        let mut answer = asked.clone();
        answer[2] |= FLAG_RESPONSE;
        answer.resize(601, 0);
        let passed = forwarded(&asked, Transport::Udp).pass_on(answer.clone());
        let message = Message::from_vec(&passed).unwrap();
        assert!(message.truncation && message.queries.len() == 1 && message.id == 5);
        assert_eq!(forwarded(&asked, Transport::Tcp).pass_on(answer.clone()).len(), 601);
        answer.truncate(600);
        assert_eq!(forwarded(&asked, Transport::Udp).pass_on(answer).len(), 600);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(2000))]

        #[test]
        fn no_bytes_do_harm(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
            check_any(&bytes)?;
        }

        #[test]
        fn nor_do_damaged_queries(
            name in "([a-z]{1,9}|tasks|my-web|127|in-addr)(\\.([a-z]{1,9}|my-web|arpa)){0,4}\\.",
            kind in any::<u16>(),
            payload in proptest::option::of(any::<u16>()),
            damage in proptest::collection::vec((any::<u16>(), any::<u8>()), 0..4),
        ) {
            let mut bytes = query(1, &name, RecordType::from(kind), payload);
            for (at, byte) in damage {
                let at = usize::from(at) % bytes.len();
                bytes[at] = byte;
            }
            check_any(&bytes)?;
        }
    }

    fn check_any(bytes: &[u8]) -> Result<(), TestCaseError> {
        let handle = table();
        for transport in [Transport::Udp, Transport::Tcp] {
            match respond_with(&handle, bytes, transport) {
                Response::Ignore => {}
                Response::Reply { bytes: reply, .. } => {
                    let parsed = Message::from_vec(&reply);
                    prop_assert!(parsed.is_ok(), "{parsed:?}");
                    prop_assert_eq!(&reply[..2], &bytes[..2]);
                    prop_assert!(transport == Transport::Tcp || reply.len() <= usize::from(MAX_UDP_BYTES));
                }
                Response::Forward(request) => {
                    let mut answer = bytes.to_vec();
                    answer[2] |= FLAG_RESPONSE;
                    let id = request.header.id;
                    prop_assert!(check_answer(bytes, &request, id, &answer).is_some());
                    answer.resize(5000, 0);
                    let passed = request.pass_on(answer);
                    prop_assert!(transport == Transport::Tcp || Message::from_vec(&passed).is_ok());
                }
            }
        }
        Ok(())
    }
}
