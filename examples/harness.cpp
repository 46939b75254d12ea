// A LoKO filter in C++ with a harness for loko-ref/protocol/1, in one file, standard library only.
//
//     g++ -std=c++17 -O2 -o harness_cpp examples/harness.cpp
//     loko-ref verify --cmd ./harness_cpp
//
// Computes in the inputs' own type. 'loko-ref protocol' prints the protocol, 'loko-ref operations'
// what each operation takes and returns.
#include <cmath>
#include <cstdint>
#include <cstring>
#include <iostream>
#include <map>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

// ------------------------------------------------------------------------------------- JSON

struct Json {
  enum Kind { Null, Bool, Number, String, Array, Object } kind = Null;
  bool truth = false;
  double number = 0;
  std::string text;  // a string; for a number its spelling, so that an id comes back as it was sent
  std::vector<Json> items;
  std::map<std::string, Json> members;

  const Json& at(const std::string& key) const {
    auto found = members.find(key);
    if (kind != Object || found == members.end()) throw std::runtime_error("no member " + key);
    return found->second;
  }
  bool has(const std::string& key) const { return kind == Object && members.count(key); }
};

class Parser {
 public:
  explicit Parser(const std::string& s) : s_(s) {}
  Json parse() {
    Json value = read(0);
    space();
    if (i_ != s_.size()) throw std::runtime_error("more after the JSON value");
    return value;
  }

 private:
  const std::string& s_;
  size_t i_ = 0;

  void space() {
    while (i_ < s_.size() && std::strchr(" \t\r\n", s_[i_])) ++i_;
  }
  char next() {
    if (i_ >= s_.size()) throw std::runtime_error("the line ends too early");
    return s_[i_++];
  }
  void expect(const char* word) {
    for (; *word; ++word)
      if (next() != *word) throw std::runtime_error("not JSON");
  }
  Json read(int depth) {
    if (depth > 100) throw std::runtime_error("nested too deeply");
    space();
    Json v;
    switch (char c = next()) {
      case 'n': expect("ull"); return v;
      case 't': expect("rue"); v.kind = Json::Bool; v.truth = true; return v;
      case 'f': expect("alse"); v.kind = Json::Bool; return v;
      case '"': v.kind = Json::String; v.text = string(); return v;
      case '[':
        v.kind = Json::Array;
        for (space(); s_.compare(i_, 1, "]") != 0;) {
          v.items.push_back(read(depth + 1));
          space();
          if (s_.compare(i_, 1, ",") == 0) ++i_;
          else if (s_.compare(i_, 1, "]") != 0) throw std::runtime_error("not JSON");
        }
        ++i_;
        return v;
      case '{':
        v.kind = Json::Object;
        for (space(); s_.compare(i_, 1, "}") != 0;) {
          space();
          expect("\"");
          std::string key = string();
          space();
          expect(":");
          v.members[key] = read(depth + 1);
          space();
          if (s_.compare(i_, 1, ",") == 0) { ++i_; space(); }
          else if (s_.compare(i_, 1, "}") != 0) throw std::runtime_error("not JSON");
        }
        ++i_;
        return v;
      default: {
        if (c != '-' && (c < '0' || c > '9')) throw std::runtime_error("not JSON");
        size_t start = i_ - 1;
        while (i_ < s_.size() && std::strchr("+-.eE0123456789", s_[i_])) ++i_;
        v.kind = Json::Number;
        v.text = s_.substr(start, i_ - start);
        v.number = std::stod(v.text);
        return v;
      }
    }
  }
  std::string string() {
    std::string out;
    for (char c = next(); c != '"'; c = next()) {
      if (c != '\\') { out += c; continue; }
      switch (c = next()) {
        case 'n': out += '\n'; break;
        case 't': out += '\t'; break;
        case 'r': out += '\r'; break;
        case 'b': out += '\b'; break;
        case 'f': out += '\f'; break;
        case 'u':  // names are ASCII; anything else is not needed here
          for (int k = 0; k < 4; ++k) next();
          out += '?';
          break;
        default: out += c;
      }
    }
    return out;
  }
};

std::string quoted(const std::string& s) {
  std::string out = "\"";
  for (char c : s) {
    if (c == '"' || c == '\\') out += '\\';
    out += static_cast<unsigned char>(c) < 32 ? ' ' : c;
  }
  return out + "\"";
}

// ----------------------------------------------------------------------------------- base64

const std::string kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

std::string encode64(const std::string& raw) {
  std::string out;
  for (size_t i = 0; i < raw.size(); i += 3) {
    uint32_t word = 0;
    int have = 0;
    for (; have < 3 && i + have < raw.size(); ++have)
      word |= static_cast<uint32_t>(static_cast<unsigned char>(raw[i + have])) << (16 - 8 * have);
    for (int k = 0; k < 4; ++k)
      out += k <= have ? kDigits[(word >> (18 - 6 * k)) & 63] : '=';
  }
  return out;
}

std::string decode64(const std::string& text) {
  std::string out;
  uint32_t word = 0;
  int bits = 0;
  for (char c : text) {
    if (c == '=') break;
    size_t digit = kDigits.find(c);
    if (digit == std::string::npos) throw std::runtime_error("not base64");
    word = word << 6 | static_cast<uint32_t>(digit);
    bits += 6;
    if (bits >= 8) out += static_cast<char>(word >> (bits -= 8) & 255);
  }
  return out;
}

// ---------------------------------------------------------------------------------- tensors
// On a little-endian machine the bytes of the numbers are the bytes of the protocol.

template <class T>
struct Tensor {
  std::vector<size_t> shape;
  std::vector<T> data;
  Tensor() = default;
  explicit Tensor(std::vector<size_t> s) : shape(std::move(s)) {
    size_t n = 1;
    for (size_t d : shape) n *= d;
    data.assign(n, T(0));
  }
  T& operator()(size_t i, size_t j) { return data[i * shape[1] + j]; }
  T operator()(size_t i, size_t j) const { return data[i * shape[1] + j]; }
  T& operator[](size_t i) { return data[i]; }
  T operator[](size_t i) const { return data[i]; }
};

template <class T> const char* name_of();
template <> const char* name_of<double>() { return "float64"; }
template <> const char* name_of<float>() { return "float32"; }

template <class T>
Tensor<T> read(const Json& json) {
  if (json.at("dtype").text != name_of<T>()) throw std::runtime_error("mixed dtypes");
  std::vector<size_t> shape;
  for (const Json& d : json.at("shape").items) shape.push_back(static_cast<size_t>(d.number));
  Tensor<T> t(shape);
  std::string raw = decode64(json.at("data").text);
  if (raw.size() != t.data.size() * sizeof(T)) throw std::runtime_error("bytes unlike the shape");
  std::memcpy(t.data.data(), raw.data(), raw.size());
  return t;
}

template <class T>
std::string write(const Tensor<T>& t) {
  std::string raw(t.data.size() * sizeof(T), '\0'), shape;
  std::memcpy(&raw[0], t.data.data(), raw.size());
  for (size_t d : t.shape) shape += (shape.empty() ? "" : ",") + std::to_string(d);
  return std::string("{\"dtype\":\"") + name_of<T>() + "\",\"shape\":[" + shape +
         "],\"data\":\"" + encode64(raw) + "\"}";
}

template <class T>
using Arrays = std::map<std::string, Tensor<T>>;

struct Unsupported : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// ----------------------------------------------------------------------------------- filter

// Lower Cholesky factor of a symmetric positive definite matrix.
template <class T>
Tensor<T> cholesky(const Tensor<T>& S) {
  size_t m = S.shape[0];
  Tensor<T> L({m, m});
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j <= i; ++j) {
      T sum = S(i, j);
      for (size_t k = 0; k < j; ++k) sum -= L(i, k) * L(j, k);
      if (i == j && !(sum > 0)) throw std::runtime_error("not positive definite");
      L(i, j) = i == j ? std::sqrt(sum) : sum / L(j, j);
    }
  return L;
}

// x with L L' x = b, in place.
template <class T>
void solve(const Tensor<T>& L, std::vector<T>& b) {
  size_t m = b.size();
  for (size_t i = 0; i < m; ++i) {
    for (size_t k = 0; k < i; ++k) b[i] -= L(i, k) * b[k];
    b[i] /= L(i, i);
  }
  for (size_t i = m; i-- > 0;) {
    for (size_t k = i + 1; k < m; ++k) b[i] -= L(k, i) * b[k];
    b[i] /= L(i, i);
  }
}

// P H': P (n,) holds variances, P (n, n) a covariance.
template <class T>
Tensor<T> times_ht(const Tensor<T>& P, const Tensor<T>& H) {
  size_t m = H.shape[0], n = H.shape[1];
  Tensor<T> out({n, m});
  for (size_t i = 0; i < n; ++i)
    for (size_t j = 0; j < m; ++j) {
      if (P.shape.size() == 1) {
        out(i, j) = P[i] * H(j, i);
      } else {
        for (size_t k = 0; k < n; ++k) out(i, j) += P(i, k) * H(j, k);
      }
    }
  return out;
}

// S = H P H' + R, K = P H' S^-1, theta + K e, and the posterior covariance.
template <class T>
Arrays<T> update(const Arrays<T>& in, bool dense, bool variational) {
  const Tensor<T>&theta = in.at("theta"), &P = in.at(dense ? "P" : "p"), &H = in.at("H"),
            &e = in.at("e"), &R = in.at("R");
  size_t m = H.shape[0], n = H.shape[1];
  Tensor<T> PH = times_ht(P, H), S = R, K({n, m}), mean = theta, after = P;
  for (size_t i = 0; i < m; ++i)
    for (size_t j = 0; j < m; ++j) {
      T sum = 0;
      for (size_t k = 0; k < n; ++k) sum += H(i, k) * PH(k, j);
      S(i, j) = sum + R(i, j);
    }
  Tensor<T> L = cholesky(S);
  for (size_t i = 0; i < n; ++i) {
    std::vector<T> row(m);
    for (size_t j = 0; j < m; ++j) row[j] = PH(i, j);
    solve(L, row);
    for (size_t j = 0; j < m; ++j) {
      K(i, j) = row[j];
      mean[i] += row[j] * e[j];
    }
  }
  if (dense) {
    for (size_t i = 0; i < n; ++i)
      for (size_t k = 0; k < n; ++k)
        for (size_t j = 0; j < m; ++j) after(i, k) -= K(i, j) * PH(k, j);
  } else if (variational) {  // 1/p+ = 1/p + diag(H' R^-1 H)
    Tensor<T> LR = cholesky(R);
    for (size_t i = 0; i < n; ++i) {
      std::vector<T> column(m);
      for (size_t j = 0; j < m; ++j) column[j] = H(j, i);
      solve(LR, column);
      T information = 0;
      for (size_t j = 0; j < m; ++j) information += H(j, i) * column[j];
      after[i] = 1 / (1 / P[i] + information);
    }
  } else {  // p+ = p (1 - diag(K H))
    for (size_t i = 0; i < n; ++i) {
      T leverage = 0;
      for (size_t j = 0; j < m; ++j) leverage += K(i, j) * H(j, i);
      after[i] = P[i] * (1 - leverage);
    }
  }
  return {{"S", S}, {"K", K}, {"theta", mean}, {dense ? "P" : "p", after}};
}

template <class T>
Tensor<T> delta(const Arrays<T>& in, double alpha) {
  const Tensor<T>&A = in.at("A"), &B = in.at("B");
  size_t r = A.shape[0], i = A.shape[1], o = B.shape[0];
  T scale = static_cast<T>(alpha / static_cast<double>(r));
  Tensor<T> out({o, i});
  for (size_t a = 0; a < o; ++a)
    for (size_t b = 0; b < i; ++b) {
      T sum = 0;
      for (size_t k = 0; k < r; ++k) sum += B(a, k) * A(k, b);
      out(a, b) = scale * sum;
    }
  return out;
}

const std::vector<std::string> kOperations = {"kalman.dense_update", "kalman.diagonal_update",
                                              "kalman.time_update",  "noise.update",
                                              "lora.delta",          "lora.merge"};

const std::string kOptions = "{}";  // what this filter has one value of: nothing

template <class T>
Arrays<T> run(const std::string& operation, const Arrays<T>& in, const Json& options) {
  if (operation == "kalman.dense_update") return update(in, true, false);
  if (operation == "kalman.diagonal_update")
    return update(in, false, options.at("diagonal").text == "variational");
  if (operation == "kalman.time_update") {
    Tensor<T> p = in.at("p");
    T lam = static_cast<T>(options.at("lam").number), q = static_cast<T>(options.at("q").number);
    for (T& v : p.data) v = v / lam + q;
    return {{"p_pred", p}};
  }
  if (operation == "noise.update") {
    Tensor<T> R = in.at("R");
    const Tensor<T>&e = in.at("e"), &HpH = in.at("HpH");
    const std::string& noise = options.at("noise").text;
    double beta = options.at("beta").number;
    if (noise == "fixed") return {{"R", R}};
    for (size_t i = 0; i < e.data.size(); ++i)
      for (size_t j = 0; j < e.data.size(); ++j) {
        T sample = e[i] * e[j] + (noise == "ema_innovation" ? T(0) : HpH(i, j));
        R(i, j) = static_cast<T>(beta) * R(i, j) + static_cast<T>(1 - beta) * sample;
      }
    return {{"R", R}};
  }
  if (operation == "lora.delta") return {{"delta", delta(in, options.at("alpha").number)}};
  if (operation == "lora.merge") {
    Tensor<T> W = in.at("W"), d = delta(in, options.at("alpha").number);
    for (size_t k = 0; k < W.data.size(); ++k) W[k] += d[k];
    return {{"W", W}};
  }
  throw Unsupported("no such operation");
}

// ----------------------------------------------------------------------------- conversation

template <class T>
std::string result(const std::string& operation, const Json& message) {
  Arrays<T> in;
  for (const auto& [name, json] : message.at("inputs").members) in[name] = read<T>(json);
  std::string out;
  for (const auto& [name, t] : run<T>(operation, in, message.at("options")))
    out += (out.empty() ? "" : ",") + quoted(name) + ":" + write(t);
  return "{\"type\":\"result\",\"id\":" + message.at("id").text + ",\"outputs\":{" + out + "}}";
}

std::string answer(const Json& message) {
  const std::string type = message.at("type").text;
  if (type == "hello") {
    const Json& canary = message.at("canary");
    std::string names;
    for (const std::string& name : kOperations) names += (names.empty() ? "" : ",") + quoted(name);
    return "{\"type\":\"hello\",\"protocol\":\"loko-ref/protocol/1\",\"operations\":[" + names +
           "],\"dtypes\":[\"float64\",\"float32\"],\"canary\":{\"float64\":" +
           write(read<double>(canary.at("float64"))) +
           ",\"float32\":" + write(read<float>(canary.at("float32"))) +
           "},\"options\":" + kOptions + "}";
  }
  if (type != "run") return "{\"type\":\"error\",\"id\":null,\"message\":\"unknown type\"}";
  const std::string id = message.at("id").text, operation = message.at("operation").text;
  try {
    const auto& inputs = message.at("inputs").members;
    bool single = !inputs.empty() && inputs.begin()->second.has("dtype") &&
                  inputs.begin()->second.at("dtype").text == "float32";
    return single ? result<float>(operation, message) : result<double>(operation, message);
  } catch (const Unsupported& error) {
    return "{\"type\":\"unsupported\",\"id\":" + id + ",\"reason\":" + quoted(error.what()) + "}";
  } catch (const std::exception& error) {
    return "{\"type\":\"error\",\"id\":" + id + ",\"message\":" + quoted(error.what()) + "}";
  }
}

int main() {
  std::ios::sync_with_stdio(false);
  for (std::string line; std::getline(std::cin, line);) {
    std::string reply;
    try {
      Json message = Parser(line).parse();
      if (message.at("type").text == "stop") return 0;
      reply = answer(message);
    } catch (const std::exception& error) {
      reply = std::string("{\"type\":\"error\",\"id\":null,\"message\":") + quoted(error.what()) + "}";
    }
    std::cout << reply << std::endl;
  }
}
