#include "documents/ranking.h"

#include "ggml-backend.h"
#include "unicode.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <new>

namespace {

const float K1 = 1.2f, B = 0.75f; // as most others have them
const double RANK = 60;           // the same

// Han, kana, Thai, Lao, Khmer, Burmese: their words are not set apart.
bool stands_alone(uint32_t c) {
    return (c >= 0x0e00 && c < 0x1100) || (c >= 0x1780 && c < 0x1800) ||
           (c >= 0x3040 && c < 0x3100) || unicode_cpt_is_han(c);
}

// Harman's S stemmer (1991), which confuses little.
void make_singular(std::string & word) {
    const size_t size = word.size();
    const auto ends = [&](const char * end) {
        const size_t length = strlen(end);
        return size > length && word.compare(size - length, length, end) == 0;
    };
    if (size < 4 || word.back() != 's') {
        return;
    }
    if (ends("ies") && !ends("eies") && !ends("aies")) {
        word.replace(size - 3, 3, "y");
    } else if (!ends("us") && !ends("ss")) {
        word.pop_back();
    }
}

// The best of the numbers of a score each, but for those that have none.
ranking best_of(const std::vector<float> & scores, float least, size_t most) {
    ranking out;
    for (uint32_t i = 0; i < scores.size(); i++) {
        if (scores[i] > least) { // so no NaN is among them
            out.push_back(i);
        }
    }
    const auto better = [&](uint32_t a, uint32_t b) {
        return scores[a] != scores[b] ? scores[a] > scores[b] : a < b;
    };
    const size_t count = std::min(most, out.size());
    std::partial_sort(out.begin(), out.begin() + (ptrdiff_t)count, out.end(), better);
    out.resize(count);
    return out;
}

} // namespace

std::vector<std::string> words_of(const std::string & text) {
    std::vector<std::string> out;
    std::string word;
    const auto end_word = [&] {
        if (!word.empty()) {
            make_singular(word);
            out.push_back(word);
            word.clear();
        }
    };
    const auto take = [&](uint32_t c) {
        const unicode_cpt_flags flags = unicode_cpt_flags_from_cpt(c);
        if (stands_alone(c) && flags.is_letter) {
            end_word();
            out.push_back(unicode_cpt_to_utf8(c));
        } else if (flags.is_letter || flags.is_number) {
            word += unicode_cpt_to_utf8(unicode_tolower(c));
        } else if (!flags.is_accent_mark) {
            end_word();
        }
    };
    for (size_t i = 0; i < text.size();) {
        const unsigned char c = (unsigned char)text[i];
        if (c < 0x80) {
            i++;
            if ((c >= 'a' && c <= 'z') || (c >= '0' && c <= '9')) {
                word += (char)c;
            } else if (c >= 'A' && c <= 'Z') {
                word += (char)(c + 'a' - 'A');
            } else {
                end_word();
            }
            continue;
        }
        for (const uint32_t part : unicode_cpts_normalize_nfd({ unicode_cpt_from_utf8(text, i) })) {
            take(part);
        }
    }
    end_word();
    return out;
}

word_index::word_index(const std::vector<std::string> & texts) : weights(texts.size()) {
    double total = 0;
    for (uint32_t text = 0; text < texts.size(); text++) {
        const std::vector<std::string> words = words_of(texts[text]);
        for (const std::string & word : words) {
            const auto [found, fresh] = numbers.try_emplace(word, (uint32_t)postings.size());
            if (fresh) {
                postings.emplace_back();
            }
            std::vector<posting> & of_word = postings[found->second];
            if (of_word.empty() || of_word.back().text != text) {
                of_word.push_back({ text, 0 });
            }
            of_word.back().times++;
        }
        weights[text] = (float)words.size();
        total += (double)words.size();
    }
    const double mean = std::max(total / std::max<double>((double)texts.size(), 1), 1.0);
    for (float & weight : weights) {
        weight = K1 * (1 - B + B * (float)(weight / mean));
    }
}

ranking word_index::find(const std::string & question, size_t most) const {
    std::vector<float> scores(weights.size());
    std::vector<std::string> words = words_of(question);
    std::sort(words.begin(), words.end());
    words.erase(std::unique(words.begin(), words.end()), words.end());
    for (const std::string & word : words) {
        const auto found = numbers.find(word);
        if (found == numbers.end()) {
            continue;
        }
        const std::vector<posting> & of_word = postings[found->second];
        const double have = (double)of_word.size(), all = (double)weights.size();
        const float rarity = (float)std::log(1 + (all - have + 0.5) / (have + 0.5));
        for (const posting & each : of_word) {
            const float times = (float)each.times;
            scores[each.text] += rarity * times * (K1 + 1) / (times + weights[each.text]);
        }
    }
    return best_of(scores, 0, most);
}

vector_index::vector_index(const std::vector<uint16_t> & rows, uint32_t dimension, int threads) {
    backend.reset(ggml_backend_init_by_type(GGML_BACKEND_DEVICE_TYPE_CPU, nullptr));
    const size_t room = 8 * ggml_tensor_overhead() + ggml_graph_overhead();
    context.reset(ggml_init({ room, nullptr, true }));
    if (!backend || !context) {
        throw std::bad_alloc();
    }
    const ggml_backend_reg_t registry =
        ggml_backend_dev_backend_reg(ggml_backend_get_device(backend.get()));
    const auto set_threads = (ggml_backend_set_n_threads_t)ggml_backend_reg_get_proc_address(
        registry, "ggml_backend_set_n_threads");
    if (set_threads != nullptr) {
        set_threads(backend.get(), threads);
    }
    ggml_tensor * matrix = ggml_new_tensor_2d(context.get(), GGML_TYPE_F16, dimension,
                                              (int64_t)(rows.size() / dimension));
    question = ggml_new_tensor_1d(context.get(), GGML_TYPE_F32, dimension);
    product = ggml_mul_mat(context.get(), matrix, question);
    graph = ggml_new_graph(context.get());
    ggml_build_forward_expand(graph, product);
    buffer.reset(ggml_backend_alloc_ctx_tensors(context.get(), backend.get()));
    if (!buffer) {
        throw std::bad_alloc();
    }
    ggml_backend_tensor_set(matrix, rows.data(), 0, rows.size() * sizeof(uint16_t));
}

ranking vector_index::find(const std::vector<float> & vector, size_t most) {
    std::vector<float> scores((size_t)ggml_nelements(product));
    ggml_backend_tensor_set(question, vector.data(), 0, vector.size() * sizeof(float));
    ggml_backend_graph_compute(backend.get(), graph);
    ggml_backend_tensor_get(product, scores.data(), 0, scores.size() * sizeof(float));
    return best_of(scores, -2, most);
}

std::vector<ranked> merged(const std::vector<ranking> & rankings, size_t most) {
    std::map<uint32_t, double> scores;
    for (const ranking & each : rankings) {
        for (size_t rank = 0; rank < each.size(); rank++) {
            scores[each[rank]] += 1 / (RANK + 1 + (double)rank);
        }
    }
    std::vector<ranked> out;
    for (const auto & [number, score] : scores) {
        out.push_back({ number, score });
    }
    std::stable_sort(out.begin(), out.end(),
                     [](const ranked & a, const ranked & b) { return a.score > b.score; });
    out.resize(std::min(most, out.size()));
    return out;
}
