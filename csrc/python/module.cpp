// gpudedup._cpu: checks arguments, releases the GIL, calls csrc/cpu, returns arrays. No algorithm lives here.
#include <cstring>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include "core/band.h"
#include "core/hash.h"
#include "cpu/buckets.h"
#include "cpu/group.h"
#include "cpu/lanes.h"
#include "cpu/sets.h"
#include "cpu/sign.h"
#include "cpu/verify.h"
#include "python/binding.h"

using namespace gpudedup;
using namespace pybind11::literals;

namespace {

/// A view of text and offsets (int32 or int64), checked: ascending and within the text.
Documents view_documents(const py::buffer_info& bytes, const py::array& offsets, int64_t width) {
  require(offsets.ndim() == 1 && offsets.size() >= 1 && (offsets.flags() & py::array::c_style),
          "offsets must be a contiguous array of at least one element");
  Documents documents{static_cast<const uint8_t*>(bytes.ptr), nullptr, nullptr, width,
                      static_cast<size_t>(offsets.size() - 1)};
  if (py::isinstance<Array<int32_t>>(offsets))
    documents.offsets32 = static_cast<const int32_t*>(offsets.data());
  else if (py::isinstance<Array<int64_t>>(offsets))
    documents.offsets64 = static_cast<const int64_t*>(offsets.data());
  else
    throw std::invalid_argument("offsets must be int32 or int64");
  int64_t size = bytes.size * bytes.itemsize;
  require(documents.offset(0) >= 0, "offsets must not be negative");
  for (size_t i = 0; i < documents.count; ++i)
    require(documents.offset(i) <= documents.offset(i + 1), "offsets must ascend");
  require(documents.offset(documents.count) <= size, "offsets reach past the text");
  return documents;
}

Fold parse_fold(const std::string& name) {
  if (name == "none") return FOLD_NONE;
  if (name == "case") return FOLD_CASE;
  require(name == "full", "fold must be none, case or full");
  return FOLD_FULL;
}

/// (index uint16[FOLD_INDEX_SIZE], pages uint32[], expansions uint32[], decompose_hangul) of one fold.
py::tuple fold_tables(const std::string& name) {
  FoldTable table = fold_table(parse_fold(name));
  return py::make_tuple(py::array_t<uint16_t>(FOLD_INDEX_SIZE, table.index),
                        py::array_t<uint32_t>(fold_page_count << FOLD_PAGE_BITS, table.pages),
                        py::array_t<uint32_t>(fold_expansion_count, table.expansions), table.decompose_hangul);
}

UnitKind parse_unit(const std::string& name) {
  if (name == "word") return UnitKind::word;
  if (name == "char") return UnitKind::character;
  require(name == "tokens", "unit must be word, char or tokens");
  return UnitKind::token;
}

/// Signature batches together with the arrays that own them.
struct LaneBatches {
  using Groups = std::vector<Array<uint32_t>>;
  std::vector<Groups> arrays;
  Lanes lanes;
  LaneBatches(const std::vector<Groups>& batches, uint32_t lane_count) : arrays(batches), lanes(lane_count) {
    require(lane_count >= 1, "num_perm must be at least 1");
    for (const Groups& groups : arrays) {
      uint64_t rest = lane_count;
      std::vector<const uint32_t*> first_lanes;
      for (const auto& group : groups) {
        require(group.ndim() == 2 && group.shape(0) == groups[0].shape(0), "a group of lanes must be uint32[n, width]");
        uint64_t width = std::min<uint64_t>(rest, static_cast<uint64_t>(groups[0].shape(1)));
        require(rest > 0 && static_cast<uint64_t>(group.shape(1)) == width,
                "groups of lanes must be of the first one's width, the last of what is left of num_perm");
        first_lanes.push_back(group.data());
        rest -= width;
      }
      require(rest == 0, "groups of lanes must have num_perm lanes together");
      lanes.add(std::move(first_lanes), static_cast<uint32_t>(groups[0].shape(1)),
                static_cast<size_t>(groups[0].shape(0)));
    }
  }
};

Array<uint64_t> keys_of_band(const LaneBatches& batches, uint32_t band, uint32_t rows, Maybe<uint64_t> scope_keys,
                             unsigned workers) {
  const Lanes& lanes = batches.lanes;
  require((static_cast<uint64_t>(band) + 1) * rows <= lanes.lane_count(), "the band must lie within num_perm");
  require_size(scope_keys, lanes.size(), "scope_keys must have one value a document");
  Array<uint64_t> out(static_cast<py::ssize_t>(lanes.size()));
  uint64_t* keys = out.mutable_data();
  py::gil_scoped_release nogil;
  Context context = make_context(workers);
  lanes.band_keys(context, band, rows, data_or_null(scope_keys), keys);
  return out;
}

py::tuple sign_batch(const Signer& signer, py::buffer text, py::array offsets,
                     std::optional<std::pair<uint32_t, uint32_t>> bands, Maybe<uint64_t> scope_keys, bool lanes,
                     bool keep_hashes, unsigned workers) {
  py::buffer_info bytes = text.request();
  bool tokens = signer.plan().unit == UnitKind::token;
  require(
      bytes.ndim == 1 && bytes.itemsize == (tokens ? 8 : 1) && (bytes.size == 0 || bytes.strides[0] == bytes.itemsize),
      "text must be contiguous bytes (tokens: int64)");
  Documents documents = view_documents(bytes, offsets, tokens ? 8 : 1);
  require_size(scope_keys, documents.count, "scope_keys must have one value a document");
  auto count = static_cast<py::ssize_t>(documents.count);
  Array<uint64_t> content({count, static_cast<py::ssize_t>(2)});
  Array<uint64_t> unit_count(count);
  Maybe<uint32_t> lane_array;
  Maybe<uint64_t> key_array;
  ShingleHashes kept;
  BandKeys band_keys{};
  SignedBatch out{content.mutable_data(), unit_count.mutable_data(), nullptr, nullptr, keep_hashes ? &kept : nullptr};
  if (lanes) {
    lane_array.emplace(std::vector<py::ssize_t>{count, static_cast<py::ssize_t>(signer.plan().lane_count)});
    out.lanes = lane_array->mutable_data();
  }
  if (bands) {
    require(bands->second >= 1 && static_cast<uint64_t>(bands->first) * bands->second <= signer.plan().lane_count,
            "bands * rows must be at most num_perm, rows at least 1");
    key_array.emplace(std::vector<py::ssize_t>{static_cast<py::ssize_t>(bands->first), count});
    band_keys = {bands->first, bands->second, data_or_null(scope_keys), key_array->mutable_data()};
    out.band_keys = &band_keys;
  }
  {
    py::gil_scoped_release nogil;
    Context context = make_context(workers);
    sign(context, signer, documents, out);
  }
  if (!keep_hashes) return py::make_tuple(content, unit_count, lane_array, key_array, py::none(), py::none());
  uint32_t* hashes = kept.hashes.release();
  py::capsule owner(hashes, [](void* pointer) { Free()(pointer); });
  Array<uint32_t> hash_array(kept.offsets.back(), hashes, owner);
  return py::make_tuple(content, unit_count, lane_array, key_array, hash_array, to_array(std::move(kept.offsets)));
}

Array<uint64_t> hash_values(py::buffer values, py::array offsets) {
  py::buffer_info bytes = values.request();
  require(bytes.ndim == 1 && bytes.itemsize == 1, "values must be bytes");
  Documents documents = view_documents(bytes, offsets, 1);
  Array<uint64_t> out(static_cast<py::ssize_t>(documents.count));
  uint64_t* hashes = out.mutable_data();
  for (size_t i = 0; i < documents.count; ++i)
    hashes[i] = hash_bytes(documents.bytes + documents.offset(i),
                           static_cast<uint64_t>(documents.offset(i + 1) - documents.offset(i)));
  return out;
}

Array<uint64_t> hash_words(Array<uint64_t> words) {
  Array<uint64_t> out(words.size());
  for (py::ssize_t i = 0; i < words.size(); ++i) out.mutable_data()[i] = hash_word(words.data()[i]);
  return out;
}

/// One core copies some 10 GB/s, a fifth of what a bus to a GPU takes.
void copy_values(py::array target, py::array source, unsigned workers) {
  constexpr size_t PIECE = 1 << 20;
  if (target.size() == 0 && source.size() == 0) return;
  require(target.writeable(), "target must be writeable");
  require(target.flags() & source.flags() & py::array::c_style, "arrays must be contiguous");
  require(target.dtype().equal(source.dtype()) && target.size() == source.size(), "arrays must be alike");
  auto* to = static_cast<uint8_t*>(target.mutable_data());
  auto* from = static_cast<const uint8_t*>(source.data());
  auto bytes = static_cast<size_t>(source.nbytes());
  py::gil_scoped_release nogil;
  make_context(workers).each((bytes + PIECE - 1) / PIECE,
                             [&](size_t piece, unsigned) {
                               size_t first = piece * PIECE;
                               std::memcpy(to + first, from + first, std::min(PIECE, bytes - first));
                             },
                             bytes < 4 * PIECE);
}

Array<uint32_t> group(Array<uint32_t> order, Array<uint64_t> content, Maybe<int32_t> within, Maybe<int32_t> across,
                      unsigned workers) {
  require(content.ndim() == 2 && content.shape(1) == 2, "content must be uint64[n, 2]");
  auto documents = static_cast<size_t>(content.shape(0));
  require_size(within, documents, "within must have one value a document");
  require_size(across, documents, "across must have one value a document");
  for (py::ssize_t i = 0; i < order.size(); ++i) require(order.data()[i] < documents, "order names no document");
  Array<uint32_t> leader(order.size());
  uint32_t* out = leader.mutable_data();
  {
    py::gil_scoped_release nogil;
    Context context = make_context(workers);
    group_content(context, order.data(), static_cast<size_t>(order.size()), content.data(), data_or_null(within),
                  data_or_null(across), out);
  }
  return leader;
}

py::tuple sort_one_band(Array<uint64_t> keys, Array<uint32_t> documents, uint64_t memory_bytes, unsigned workers) {
  auto count = static_cast<size_t>(documents.size());
  for (size_t i = 0; i < count; ++i)
    require(documents.data()[i] < static_cast<size_t>(keys.size()), "documents names no band key");
  EqualKeys found;
  {
    py::gil_scoped_release nogil;
    Context context = make_context(workers);
    found = sort_band(context, keys.data(), documents.data(), count, memory_bytes);
  }
  return py::make_tuple(to_array(std::move(found.places)), to_array(std::move(found.lengths)));
}

Band view_band(const Array<uint32_t>& members, const Array<uint32_t>& lengths) {
  return {members.data(), static_cast<size_t>(members.size()), lengths.data(), static_cast<size_t>(lengths.size())};
}

std::unique_ptr<Buckets> make_buckets(const std::vector<std::pair<Array<uint32_t>, Array<uint32_t>>>& members_lengths,
                                      size_t count, size_t fixed, Maybe<int32_t> scopes, Maybe<int32_t> across,
                                      uint64_t window, uint64_t memory_bytes, const std::string& directory,
                                      unsigned workers) {
  require(window >= 1, "window must be at least 1");
  require(count < NONE, "count must be below 2^32 - 1");
  require_size(scopes, count, "scopes must have one value a document");
  require_size(across, count, "across must have one value a document");
  std::vector<Band> bands;
  for (const auto& [members, lengths] : members_lengths) bands.push_back(view_band(members, lengths));
  require(fixed <= count, "fixed must be at most count");
  Ranked ranked{count, fixed, data_or_null(scopes), data_or_null(across)};
  py::gil_scoped_release nogil;
  Context context = make_context(workers);
  return std::make_unique<Buckets>(context, bands, ranked, window, Scratch(memory_bytes, directory));
}

py::tuple candidate_pairs(const Buckets& buckets, uint32_t first, uint32_t last) {
  require(first <= last && last <= buckets.count(), "first .. last must be documents");
  std::vector<uint32_t> better, worse;
  for (uint32_t document = first; document < last; ++document) {
    buckets.candidates(document, better, [](uint32_t) { return true; });
    worse.resize(better.size(), document);
  }
  return py::make_tuple(to_array(std::move(better)), to_array(std::move(worse)));
}

void add_sets(SetStore& store, Array<uint32_t> numbers, Array<uint32_t> rows, Array<uint32_t> hashes,
              Array<int64_t> offsets, bool adopt, unsigned workers) {
  auto count = static_cast<size_t>(numbers.size());
  require(rows.size() == numbers.size(), "rows must have one value a number");
  require(offsets.size() >= 1 && offsets.data()[0] >= 0, "offsets must have at least one value, none negative");
  for (py::ssize_t i = 0; i + 1 < offsets.size(); ++i)
    require(offsets.data()[i] <= offsets.data()[i + 1], "offsets must ascend");
  require(offsets.data()[offsets.size() - 1] <= hashes.size(), "offsets reach past the hashes");
  for (size_t i = 0; i < count; ++i) {
    require(numbers.data()[i] < store.size(), "numbers reach past the store");
    require(static_cast<py::ssize_t>(rows.data()[i]) + 1 < offsets.size(), "rows reach past the batch");
    require(!adopt || i == 0 || rows.data()[i - 1] < rows.data()[i], "rows must ascend to be adopted");
  }
  require(!adopt || hashes.writeable(), "hashes must be writeable to be adopted");
  uint32_t* values = adopt ? hashes.mutable_data() : nullptr;
  auto release = [](void* array) {
    py::gil_scoped_acquire gil;
    delete static_cast<py::array*>(array);
  };
  std::shared_ptr<void> owner(adopt ? new py::array(hashes) : nullptr, release);
  py::gil_scoped_release nogil;
  Context context = make_context(workers);
  if (adopt && store.adopt(context, numbers.data(), rows.data(), count, values, offsets.data(),
                           static_cast<size_t>(hashes.size()), owner))
    return;
  store.add(context, numbers.data(), rows.data(), count, hashes.data(), offsets.data());
}

Decision verify(const Buckets& buckets, bool components, uint64_t threshold_ppm, const SetStore* sets,
                const LaneBatches* lanes, Maybe<uint32_t> documents, Maybe<uint32_t> leader, const Decision* prior,
                unsigned workers) {
  require_size(documents, buckets.count(), "documents must have one value a document");
  require_size(leader, buckets.count(), "leader must have one value a document");
  require(!lanes || documents, "lanes need documents");
  require(!sets || sets->size() >= buckets.count(), "sets must have room for all documents");
  require(!prior || prior->keeper.size() == buckets.count(), "prior belongs to other buckets");
  if (leader)
    for (size_t i = 0; i < buckets.count(); ++i)
      require(leader->data()[i] <= i, "leader must be at or before its document");
  if (documents)
    for (size_t i = 0; i < buckets.count() && lanes; ++i)
      require(documents->data()[i] < lanes->lanes.size(), "documents names no signature");
  Comparison compare;
  compare.sets = sets;
  compare.lanes = lanes ? &lanes->lanes : nullptr;
  compare.documents = data_or_null(documents);
  compare.threshold_ppm = threshold_ppm;
  compare.cpu = &tier();
  EqualContent equal{data_or_null(leader)};
  py::gil_scoped_release nogil;
  Context context = make_context(workers);
  return components ? verify_components(context, buckets, compare, equal)
                    : verify_keepers(context, buckets, compare, equal, prior);
}

/// (keeper uint32[n], part uint64[n], whole uint64[n]); keeper NONE and whole 0 where there is nothing to say.
py::tuple decision_arrays(const Decision& decision) {
  std::vector<uint64_t> part, whole;
  part.reserve(decision.similarity.size());
  whole.reserve(decision.similarity.size());
  for (const Similarity& similarity : decision.similarity) {
    part.push_back(similarity.part);
    whole.push_back(similarity.whole);
  }
  return py::make_tuple(to_array(std::vector<uint32_t>(decision.keeper)), to_array(std::move(part)),
                        to_array(std::move(whole)));
}

/// The decision that `decision_arrays` gave.
Decision decision_of(Array<uint32_t> keeper, Array<uint64_t> part, Array<uint64_t> whole, uint64_t compared) {
  size_t count = static_cast<size_t>(keeper.size());
  require(static_cast<size_t>(part.size()) == count && static_cast<size_t>(whole.size()) == count,
          "keeper, part and whole must have one value a document");
  Decision decision;
  decision.compared = compared;
  for (size_t i = 0; i < count; ++i) {
    require(keeper.data()[i] == NONE || keeper.data()[i] < i, "a keeper must be a document of better rank");
    decision.keeper.push_back(keeper.data()[i]);
    decision.similarity.push_back({part.data()[i], whole.data()[i]});
  }
  return decision;
}

}  // namespace

PYBIND11_MODULE(_cpu, m) {
  m.doc() = "The CPU engine of gpudedup. Internal: use the functions of gpudedup itself.";
  m.attr("NONE") = NONE;
  m.attr("fold_tables_sha256") = std::string(fold_tables_sha256);
  m.attr("fold_tables_sources") = std::string(fold_tables_sources);

  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const std::system_error& error) {
      std::string place(error.what());
      PyErr_SetObject(PyExc_OSError, py::make_tuple(error.code().value(), place).ptr());
    }
  });

  m.def("fold_tables", fold_tables, "fold"_a);
  m.def("tier", [] { return tier().name; }, "Name of the CPU tier in use.");
  m.def("available_tiers", [] { return std::string(available_tiers()); });
  m.def(
      "release_memory",
      [] {
#if defined(__GLIBC__)
        ::malloc_trim(0);
#endif
      },
      "Give freed memory back to the system; the C library keeps it otherwise.");

  py::class_<Signer>(m, "Signer")
      .def(py::init([](const std::string& unit, uint32_t n, const std::string& fold, uint32_t num_perm, uint64_t seed) {
             require(n >= 1 && n <= MAX_SHINGLE_UNITS, "a shingle has 1 to 256 units");
             require(num_perm <= 65536, "num_perm must be at most 65536");
             return std::make_unique<Signer>(parse_unit(unit), n, parse_fold(fold), num_perm, seed);
           }),
           py::kw_only(), "unit"_a, "n"_a, "fold"_a, "num_perm"_a, "seed"_a)
      .def("sign", sign_batch, "text"_a, "offsets"_a.noconvert(), py::kw_only(), "bands"_a = py::none(),
           "scope_keys"_a = py::none(), "lanes"_a = true, "keep_hashes"_a = false, "workers"_a,
           "(content, unit_count, lanes, band keys, shingle hashes, their offsets); None for what was not asked for.");

  m.def("hash_values", hash_values, "values"_a, "offsets"_a.noconvert());
  m.def("hash_words", hash_words, "words"_a.noconvert());
  m.def("copy_values", copy_values, "target"_a, "source"_a, py::kw_only(), "workers"_a,
        "Copy an array over another of its type and size, with several threads where it is large.");
  m.def("group_content", group, "order"_a.noconvert(), "content"_a.noconvert(), py::kw_only(), "within"_a = py::none(),
        "across"_a = py::none(), "workers"_a);

  m.def(
      "intersect",
      [](Array<uint32_t> left, Array<uint32_t> right, uint64_t needed) {
        return tier().intersect(left.data(), static_cast<uint64_t>(left.size()), right.data(),
                                static_cast<uint64_t>(right.size()), needed);
      },
      "left"_a.noconvert(), "right"_a.noconvert(), "needed"_a);

  py::class_<LaneBatches>(m, "Lanes")
      .def(py::init<const std::vector<LaneBatches::Groups>&, uint32_t>(), "batches"_a.noconvert(), "num_perm"_a)
      .def("band_keys", keys_of_band, "band"_a, py::kw_only(), "rows"_a, "scope_keys"_a = py::none(), "workers"_a);

  m.def("sort_band", sort_one_band, "keys"_a.noconvert(), "documents"_a.noconvert(), py::kw_only(), "memory_bytes"_a,
        "workers"_a);
  m.def(
      "check_band",
      [](Array<uint32_t> members, Array<uint32_t> lengths, size_t count) {
        check_band(view_band(members, lengths), count);
      },
      "members"_a.noconvert(), "lengths"_a.noconvert(), "count"_a,
      "Raise ValueError unless members and lengths are those of buckets of two and more of `count` documents.");
  py::class_<Buckets>(m, "Buckets")
      .def(py::init(&make_buckets), "bands"_a.noconvert(), py::kw_only(), "count"_a, "fixed"_a = 0,
           "scopes"_a = py::none(), "across"_a = py::none(), "window"_a, "memory_bytes"_a, "directory"_a, "workers"_a)
      .def_property_readonly("bounded_buckets", &Buckets::bounded_buckets)
      .def_property_readonly("bounded_documents", &Buckets::bounded_documents)
      .def_property_readonly("longest", &Buckets::longest)
      .def("shared",
           [](const Buckets& buckets) {
             std::vector<uint32_t> documents;
             for (uint32_t i = 0; i < buckets.count(); ++i)
               if (buckets.shared(i)) documents.push_back(i);
             return to_array(std::move(documents));
           })
      .def("candidates", candidate_pairs, "first"_a, "last"_a);

  py::class_<SetStore>(m, "SetStore")
      .def(py::init([](size_t count, uint64_t memory_bytes, const std::string& directory) {
             auto store = std::make_unique<SetStore>(memory_bytes, directory);
             store->resize(count);
             return store;
           }),
           py::kw_only(), "count"_a, "memory_bytes"_a, "directory"_a)
      .def("add", add_sets, "numbers"_a.noconvert(), "rows"_a.noconvert(), "hashes"_a.noconvert(),
           "offsets"_a.noconvert(), py::kw_only(), "adopt"_a = false, "workers"_a)
      .def("missing",
           [](const SetStore& store, Array<uint32_t> numbers) {
             std::vector<uint32_t> out;
             for (py::ssize_t i = 0; i < numbers.size(); ++i) {
               require(numbers.data()[i] < store.size(), "numbers reach past the store");
               if (!store.has(numbers.data()[i])) out.push_back(numbers.data()[i]);
             }
             return to_array(std::move(out));
           })
      .def("get",
           [](const SetStore& store, uint32_t number) {
             require(number < store.size(), "number reaches past the store");
             SetView set = store[number];
             return to_array(std::vector<uint32_t>(set.values, set.values + set.size));
           })
      .def_property_readonly("bytes_in_memory", &SetStore::bytes_in_memory)
      .def_property_readonly("bytes_on_disk", &SetStore::bytes_on_disk);

  py::class_<Decision>(m, "Decision").def("arrays", decision_arrays).def_readonly("compared", &Decision::compared);
  m.def("decision_of", decision_of, "keeper"_a, "part"_a, "whole"_a, "compared"_a);
  m.def("verify", verify, "buckets"_a, py::kw_only(), "components"_a, "threshold_ppm"_a, "sets"_a.none(true),
        "lanes"_a.none(true), "documents"_a, "leader"_a, "prior"_a.none(true), "workers"_a);
  m.def(
      "undecided_documents",
      [](const Buckets& buckets, const Decision& prior) {
        require(prior.keeper.size() == buckets.count(), "prior belongs to other buckets");
        py::gil_scoped_release nogil;
        Context context = make_context(1);
        std::vector<uint32_t> out = undecided_documents(context, buckets, prior);
        py::gil_scoped_acquire gil;
        return to_array(std::move(out));
      },
      "buckets"_a, "prior"_a);

  bind_stream(m);
}
