// A LoKO filter in Rust with a harness for loko-ref/protocol/1, in one file, standard library only.
//
//     rustc --edition 2021 -O -o harness_rs examples/harness.rs
//     loko-ref verify --cmd ./harness_rs
//
// Computes in the inputs' own type. 'loko-ref protocol' prints the protocol, 'loko-ref operations'
// what each operation takes and returns.
use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::ops::{Add, AddAssign, Div, Mul, Sub, SubAssign};

type Fallible<T> = Result<T, String>;

// ------------------------------------------------------------------------------------- JSON

enum Json {
    Null,
    Bool,
    Number(String), // its spelling, so that an id comes back as it was sent
    Text(String),
    Array(Vec<Json>),
    Object(BTreeMap<String, Json>),
}

impl Json {
    fn at(&self, key: &str) -> Fallible<&Json> {
        match self {
            Json::Object(members) => members.get(key).ok_or(format!("no member {key}")),
            _ => Err(format!("no object with a member {key}")),
        }
    }
    fn text(&self) -> Fallible<&str> {
        match self {
            Json::Text(s) | Json::Number(s) => Ok(s),
            _ => Err("neither text nor number".into()),
        }
    }
    fn number(&self) -> Fallible<f64> {
        match self {
            Json::Number(s) => s.parse().map_err(|_| format!("{s} is no number")),
            _ => Err("not a number".into()),
        }
    }
    fn items(&self) -> &[Json] {
        if let Json::Array(items) = self { items } else { &[] }
    }
    fn members(&self) -> Fallible<&BTreeMap<String, Json>> {
        if let Json::Object(members) = self { Ok(members) } else { Err("not an object".into()) }
    }
}

struct Parser<'a> {
    s: &'a [u8],
    i: usize,
}

impl Parser<'_> {
    fn parse(line: &[u8]) -> Fallible<Json> {
        let mut parser = Parser { s: line, i: 0 };
        let value = parser.read(0)?;
        parser.space();
        if parser.i == line.len() { Ok(value) } else { Err("more after the JSON value".into()) }
    }
    fn space(&mut self) {
        while self.i < self.s.len() && b" \t\r\n".contains(&self.s[self.i]) {
            self.i += 1;
        }
    }
    fn peek(&self) -> u8 {
        *self.s.get(self.i).unwrap_or(&0)
    }
    fn next(&mut self) -> Fallible<u8> {
        let c = *self.s.get(self.i).ok_or("the line ends too early")?;
        self.i += 1;
        Ok(c)
    }
    fn expect(&mut self, word: &[u8]) -> Fallible<()> {
        for &c in word {
            if self.next()? != c {
                return Err("not JSON".into());
            }
        }
        Ok(())
    }
    // after an item: true where another follows, false where `close` ends the list
    fn more(&mut self, close: u8) -> Fallible<bool> {
        self.space();
        match self.next()? {
            b',' => Ok(true),
            c if c == close => Ok(false),
            _ => Err("not JSON".into()),
        }
    }
    fn read(&mut self, depth: usize) -> Fallible<Json> {
        if depth > 100 {
            return Err("nested too deeply".into());
        }
        self.space();
        match self.next()? {
            b'n' => self.expect(b"ull").map(|_| Json::Null),
            b't' => self.expect(b"rue").map(|_| Json::Bool),
            b'f' => self.expect(b"alse").map(|_| Json::Bool),
            b'"' => Ok(Json::Text(self.string()?)),
            b'[' => {
                let mut items = Vec::new();
                self.space();
                if self.peek() == b']' {
                    self.i += 1;
                    return Ok(Json::Array(items));
                }
                loop {
                    items.push(self.read(depth + 1)?);
                    if !self.more(b']')? {
                        return Ok(Json::Array(items));
                    }
                }
            }
            b'{' => {
                let mut members = BTreeMap::new();
                self.space();
                if self.peek() == b'}' {
                    self.i += 1;
                    return Ok(Json::Object(members));
                }
                loop {
                    self.space();
                    self.expect(b"\"")?;
                    let key = self.string()?;
                    self.space();
                    self.expect(b":")?;
                    members.insert(key, self.read(depth + 1)?);
                    if !self.more(b'}')? {
                        return Ok(Json::Object(members));
                    }
                }
            }
            b'-' | b'0'..=b'9' => {
                let start = self.i - 1;
                while b"+-.eE0123456789".contains(&self.peek()) {
                    self.i += 1;
                }
                Ok(Json::Number(String::from_utf8_lossy(&self.s[start..self.i]).into()))
            }
            _ => Err("not JSON".into()),
        }
    }
    fn string(&mut self) -> Fallible<String> {
        let mut out = Vec::new();
        loop {
            match self.next()? {
                b'"' => return String::from_utf8(out).map_err(|e| e.to_string()),
                b'\\' => match self.next()? {
                    b'n' => out.push(b'\n'),
                    b't' => out.push(b'\t'),
                    b'u' => {
                        // names are ASCII; anything else is not needed here
                        for _ in 0..4 {
                            self.next()?;
                        }
                        out.push(b'?');
                    }
                    c => out.push(c),
                },
                c => out.push(c),
            }
        }
    }
}

fn quoted(s: &str) -> String {
    let safe: String = s.chars().map(|c| if c < ' ' { ' ' } else { c }).collect();
    format!("\"{}\"", safe.replace('\\', "\\\\").replace('"', "\\\""))
}

// ----------------------------------------------------------------------------------- base64

const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

fn encode64(raw: &[u8]) -> String {
    let mut out = String::new();
    for chunk in raw.chunks(3) {
        let mut word = 0u32;
        for (k, &byte) in chunk.iter().enumerate() {
            word |= (byte as u32) << (16 - 8 * k);
        }
        for k in 0..4 {
            let digit = DIGITS[(word >> (18 - 6 * k)) as usize & 63] as char;
            out.push(if k <= chunk.len() { digit } else { '=' });
        }
    }
    out
}

fn decode64(text: &str) -> Fallible<Vec<u8>> {
    let (mut out, mut word, mut bits) = (Vec::new(), 0u32, 0);
    for c in text.trim_end_matches('=').bytes() {
        let digit = DIGITS.iter().position(|&d| d == c).ok_or("not base64")?;
        word = word << 6 | digit as u32;
        bits += 6;
        if bits >= 8 {
            bits -= 8;
            out.push((word >> bits & 255) as u8);
        }
    }
    Ok(out)
}

// ---------------------------------------------------------------------------------- tensors

trait Real:
    Copy + PartialOrd + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self>
    + Div<Output = Self> + AddAssign + SubAssign
{
    const NAME: &'static str;
    const SIZE: usize;
    fn of(x: f64) -> Self;
    fn from_bytes(b: &[u8]) -> Self;
    fn bytes(self) -> Vec<u8>;
}

macro_rules! real {
    ($t:ty, $name:expr) => {
        impl Real for $t {
            const NAME: &'static str = $name;
            const SIZE: usize = std::mem::size_of::<$t>();
            fn of(x: f64) -> Self { x as $t }
            fn from_bytes(b: &[u8]) -> Self { <$t>::from_le_bytes(b.try_into().unwrap()) }
            fn bytes(self) -> Vec<u8> { self.to_le_bytes().to_vec() }
        }
    };
}
real!(f64, "float64");
real!(f32, "float32");

#[derive(Clone)]
struct Tensor<T> {
    shape: Vec<usize>,
    data: Vec<T>,
}

impl<T: Real> Tensor<T> {
    fn zeros(shape: &[usize]) -> Self {
        Tensor { shape: shape.to_vec(), data: vec![T::of(0.0); shape.iter().product()] }
    }
    fn at(&self, i: usize, j: usize) -> T {
        self.data[i * self.shape[1] + j]
    }
    fn to(&mut self, i: usize, j: usize) -> &mut T {
        &mut self.data[i * self.shape[1] + j]
    }
    fn read(json: &Json) -> Fallible<Self> {
        if json.at("dtype")?.text()? != T::NAME {
            return Err("mixed dtypes".into());
        }
        let mut shape = Vec::new();
        for d in json.at("shape")?.items() {
            shape.push(d.number()? as usize);
        }
        let raw = decode64(json.at("data")?.text()?)?;
        let data: Vec<T> = raw.chunks_exact(T::SIZE).map(T::from_bytes).collect();
        if data.len() != shape.iter().product::<usize>() {
            return Err("bytes unlike the shape".into());
        }
        Ok(Tensor { shape, data })
    }
    fn write(&self) -> String {
        let raw: Vec<u8> = self.data.iter().flat_map(|v| v.bytes()).collect();
        let (dtype, shape, data) = (T::NAME, &self.shape, encode64(&raw));
        format!("{{\"dtype\":\"{dtype}\",\"shape\":{shape:?},\"data\":\"{data}\"}}")
    }
}

type Arrays<T> = BTreeMap<String, Tensor<T>>;

fn get<'a, T>(arrays: &'a Arrays<T>, name: &str) -> Fallible<&'a Tensor<T>> {
    arrays.get(name).ok_or(format!("no input {name}"))
}

const UNSUPPORTED: &str = "not offered";

// ----------------------------------------------------------------------------------- filter

/// Solve A X = B by Gaussian elimination with row pivoting; returns X.
fn solve<T: Real>(a: &Tensor<T>, b: &Tensor<T>) -> Tensor<T> {
    let (m, k) = (a.shape[0], b.shape[1]);
    let (mut a, mut x) = (a.clone(), b.clone());
    let size = |v: T| if v < T::of(0.0) { T::of(0.0) - v } else { v };
    for c in 0..m {
        let mut pivot = c;
        for i in c..m {
            if size(a.at(i, c)) > size(a.at(pivot, c)) {
                pivot = i;
            }
        }
        for j in 0..m {
            a.data.swap(c * m + j, pivot * m + j);
        }
        for j in 0..k {
            x.data.swap(c * k + j, pivot * k + j);
        }
        for i in c + 1..m {
            let factor = a.at(i, c) / a.at(c, c);
            for j in c..m {
                let v = a.at(c, j);
                *a.to(i, j) -= factor * v;
            }
            for j in 0..k {
                let v = x.at(c, j);
                *x.to(i, j) -= factor * v;
            }
        }
    }
    for i in (0..m).rev() {
        for j in 0..k {
            let mut sum = x.at(i, j);
            for c in i + 1..m {
                sum -= a.at(i, c) * x.at(c, j);
            }
            *x.to(i, j) = sum / a.at(i, i);
        }
    }
    x
}

/// S = H P H' + R, K = P H' S^-1, theta + K e, and the posterior covariance.
fn update<T: Real>(input: &Arrays<T>, dense: bool, variational: bool) -> Fallible<Arrays<T>> {
    let name = if dense { "P" } else { "p" };
    let (theta, p, h) = (get(input, "theta")?, get(input, name)?, get(input, "H")?);
    let (e, r) = (get(input, "e")?, get(input, "R")?);
    let (m, n) = (h.shape[0], h.shape[1]);
    let mut hp = Tensor::zeros(&[m, n]); // H P
    for j in 0..m {
        for i in 0..n {
            if dense {
                for k in 0..n {
                    *hp.to(j, i) += h.at(j, k) * p.at(k, i);
                }
            } else {
                *hp.to(j, i) = h.at(j, i) * p.data[i];
            }
        }
    }
    let mut s = r.clone();
    for i in 0..m {
        for j in 0..m {
            let mut sum = T::of(0.0);
            for k in 0..n {
                sum += hp.at(i, k) * h.at(j, k);
            }
            *s.to(i, j) = sum + r.at(i, j);
        }
    }
    let kt = solve(&s, &hp); // S K' = H P
    let (mut gain, mut mean, mut after) = (Tensor::zeros(&[n, m]), theta.clone(), p.clone());
    for i in 0..n {
        for j in 0..m {
            *gain.to(i, j) = kt.at(j, i);
            mean.data[i] += kt.at(j, i) * e.data[j];
        }
    }
    let x = solve(r, h);
    for i in 0..n {
        if dense {
            for k in 0..n {
                for j in 0..m {
                    *after.to(i, k) -= gain.at(i, j) * hp.at(j, k);
                }
            }
            continue;
        }
        let (mut leverage, mut information) = (T::of(0.0), T::of(0.0));
        for j in 0..m {
            leverage += gain.at(i, j) * h.at(j, i);
            information += h.at(j, i) * x.at(j, i);
        }
        let one = T::of(1.0);
        after.data[i] = if variational {
            one / (one / p.data[i] + information)
        } else {
            p.data[i] * (one - leverage)
        };
    }
    Ok([("S", s), ("K", gain), ("theta", mean), (name, after)]
        .into_iter()
        .map(|(key, t)| (key.to_string(), t))
        .collect())
}

fn delta<T: Real>(input: &Arrays<T>, alpha: f64) -> Fallible<Tensor<T>> {
    let (a, b) = (get(input, "A")?, get(input, "B")?);
    let (r, i, o) = (a.shape[0], a.shape[1], b.shape[0]);
    let mut out = Tensor::zeros(&[o, i]);
    for row in 0..o {
        for column in 0..i {
            let mut sum = T::of(0.0);
            for k in 0..r {
                sum += b.at(row, k) * a.at(k, column);
            }
            *out.to(row, column) = T::of(alpha / r as f64) * sum;
        }
    }
    Ok(out)
}

const OPERATIONS: [&str; 6] = [
    "kalman.dense_update",
    "kalman.diagonal_update",
    "kalman.time_update",
    "noise.update",
    "lora.delta",
    "lora.merge",
];

const OPTIONS: &str = "{}"; // what this filter has one value of: nothing

fn run<T: Real>(operation: &str, input: &Arrays<T>, options: &Json) -> Fallible<Arrays<T>> {
    let one = |name: &str, t: Tensor<T>| Ok(BTreeMap::from([(name.to_string(), t)]));
    match operation {
        "kalman.dense_update" => update(input, true, false),
        "kalman.diagonal_update" => {
            update(input, false, options.at("diagonal")?.text()? == "variational")
        }
        "kalman.time_update" => {
            let (lam, q) = (options.at("lam")?.number()?, options.at("q")?.number()?);
            let mut p = get(input, "p")?.clone();
            for v in p.data.iter_mut() {
                *v = *v / T::of(lam) + T::of(q);
            }
            one("p_pred", p)
        }
        "noise.update" => {
            let (e, hph) = (get(input, "e")?, get(input, "HpH")?);
            let (noise, beta) = (options.at("noise")?.text()?, options.at("beta")?.number()?);
            let mut r = get(input, "R")?.clone();
            if noise != "fixed" {
                for i in 0..e.data.len() {
                    for j in 0..e.data.len() {
                        let mut sample = e.data[i] * e.data[j];
                        if noise != "ema_innovation" {
                            sample += hph.at(i, j);
                        }
                        let old = r.at(i, j);
                        *r.to(i, j) = T::of(beta) * old + T::of(1.0 - beta) * sample;
                    }
                }
            }
            one("R", r)
        }
        "lora.delta" => one("delta", delta(input, options.at("alpha")?.number()?)?),
        "lora.merge" => {
            let mut w = get(input, "W")?.clone();
            let d = delta(input, options.at("alpha")?.number()?)?;
            for (v, change) in w.data.iter_mut().zip(d.data) {
                *v += change;
            }
            one("W", w)
        }
        _ => Err(UNSUPPORTED.into()),
    }
}

// ----------------------------------------------------------------------------- conversation

fn outputs<T: Real>(message: &Json) -> Fallible<String> {
    let operation = message.at("operation")?.text()?;
    let mut input: Arrays<T> = BTreeMap::new();
    for (name, json) in message.at("inputs")?.members()? {
        input.insert(name.clone(), Tensor::read(json)?);
    }
    let found = run::<T>(operation, &input, message.at("options")?)?;
    let parts: Vec<String> =
        found.iter().map(|(name, t)| format!("{}:{}", quoted(name), t.write())).collect();
    Ok(parts.join(","))
}

fn hello(message: &Json) -> Fallible<String> {
    let canary = message.at("canary")?;
    let names: Vec<String> = OPERATIONS.iter().map(|name| quoted(name)).collect();
    Ok(format!(
        "{{\"type\":\"hello\",\"protocol\":\"loko-ref/protocol/1\",\"operations\":[{}],\
         \"dtypes\":[\"float64\",\"float32\"],\"options\":{OPTIONS},\
         \"canary\":{{\"float64\":{},\"float32\":{}}}}}",
        names.join(","),
        Tensor::<f64>::read(canary.at("float64")?)?.write(),
        Tensor::<f32>::read(canary.at("float32")?)?.write()
    ))
}

fn answer(message: &Json) -> Fallible<String> {
    match message.at("type")?.text()? {
        "hello" => return hello(message),
        "run" => {}
        _ => return Err("unknown type".into()),
    }
    let (id, operation) = (message.at("id")?.text()?, message.at("operation")?.text()?);
    let unsupported = format!(
        "{{\"type\":\"unsupported\",\"id\":{id},\"reason\":{}}}",
        quoted(UNSUPPORTED)
    );
    if !OPERATIONS.contains(&operation) {
        return Ok(unsupported);
    }
    let first = message.at("inputs")?.members()?.values().next().ok_or("no inputs")?;
    let done = match first.at("dtype")?.text()? {
        "float32" => outputs::<f32>(message),
        _ => outputs::<f64>(message),
    };
    Ok(match done {
        Err(error) if error == UNSUPPORTED => unsupported,
        Ok(text) => format!("{{\"type\":\"result\",\"id\":{id},\"outputs\":{{{text}}}}}"),
        Err(error) => {
            format!("{{\"type\":\"error\",\"id\":{id},\"message\":{}}}", quoted(&error))
        }
    })
}

fn main() {
    let mut out = std::io::stdout().lock();
    for line in std::io::stdin().lock().split(b'\n') {
        let Ok(line) = line else { return };
        let reply = Parser::parse(&line).and_then(|message| {
            if matches!(message.at("type")?.text(), Ok("stop")) {
                std::process::exit(0);
            }
            answer(&message)
        });
        let text = reply.unwrap_or_else(|error| {
            format!("{{\"type\":\"error\",\"id\":null,\"message\":{}}}", quoted(&error))
        });
        if writeln!(out, "{text}").and_then(|_| out.flush()).is_err() {
            return;
        }
    }
}
