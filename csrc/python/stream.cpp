// gpudedup._cpu.Stream and StreamBuilder.
#include "cpu/stream.h"

#include "cpu/stream_state.h"
#include "python/binding.h"

namespace gpudedup {
namespace {

using namespace pybind11::literals;

StreamPlan::Verify parse_verify(const std::string& name) {
  if (name == "exact") return StreamPlan::Verify::exact;
  if (name == "signature") return StreamPlan::Verify::signature;
  require(name == "none", "verify must be exact, signature or none");
  return StreamPlan::Verify::none;
}

void require_whole(const Stream& stream) { require(stream.whole(), "the stream is being filled; finish its builder"); }

py::tuple decide_stream(Stream& stream, Array<uint32_t> lanes, Array<uint64_t> content, Array<uint64_t> unit_count,
                        Maybe<uint64_t> scope_keys, Maybe<int32_t> scopes, Maybe<int32_t> across,
                        Maybe<uint32_t> hashes, Maybe<int64_t> offsets, uint32_t lane_count) {
  auto count = static_cast<size_t>(unit_count.size());
  require(lanes.ndim() == 2 && lanes.shape(1) == lane_count && static_cast<size_t>(lanes.shape(0)) == count,
          "lanes must be uint32[n, num_perm]");
  require(content.ndim() == 2 && content.shape(1) == 2 && static_cast<size_t>(content.shape(0)) == count,
          "content must be uint64[n, 2]");
  require_size(scope_keys, count, "scope_keys must have one value a document");
  require_size(scopes, count, "scopes must have one value a document");
  require_size(across, count, "across must have one value a document");
  require_size(offsets, count + 1, "offsets must have one more value than documents");
  require(static_cast<bool>(hashes) == static_cast<bool>(offsets), "hashes and offsets go together");
  require(hashes || stream.plan().verify != StreamPlan::Verify::exact, "verify = exact needs hashes");
  require(stream.plan().lane_count == lane_count, "num_perm must be that of the stream");
  require_whole(stream);
  if (hashes) {
    for (size_t i = 0; i < count; ++i) require(offsets->data()[i] <= offsets->data()[i + 1], "offsets must ascend");
    require(offsets->data()[0] >= 0 && offsets->data()[count] <= hashes->size(), "offsets reach past the hashes");
  }
  StreamBatch batch{count,
                    lanes.data(),
                    content.data(),
                    unit_count.data(),
                    data_or_null(scope_keys),
                    data_or_null(scopes),
                    data_or_null(across),
                    data_or_null(hashes),
                    data_or_null(offsets)};
  StreamDecision decision;
  {
    py::gil_scoped_release nogil;
    Context context = make_context(1);
    decision = stream.decide(context, batch);
  }
  std::vector<uint64_t> part, whole;
  for (const Similarity& similarity : decision.similarity) {
    part.push_back(similarity.part);
    whole.push_back(similarity.whole);
  }
  return py::make_tuple(to_array(std::move(decision.keeper)), to_array(std::move(part)), to_array(std::move(whole)),
                        to_array(std::move(decision.exact)));
}

/// The columns of a whole stream, for rows [first, last) of `count`.
StreamColumns columns_of(const Stream& stream) {
  require_whole(stream);
  return StreamColumns(stream);
}

void require_range(size_t first, size_t last, size_t count) {
  require(first <= last && last <= count, "first .. last must be rows of the table");
}

py::tuple representatives(const Stream& stream, size_t first, size_t last) {
  StreamColumns columns = columns_of(stream);
  require_range(first, last, columns.representatives());
  RepresentativeColumns out = columns.representatives(first, last);
  return py::make_tuple(to_array(std::move(out.first)), to_array(std::move(out.second)), to_array(std::move(out.scope)),
                        to_array(std::move(out.across)), to_array(std::move(out.kept)));
}

Array<int64_t> kept(const Stream& stream, size_t first, size_t last) {
  StreamColumns columns = columns_of(stream);
  require_range(first, last, columns.kept());
  return to_array(columns.kept(first, last));
}

py::tuple sets(const Stream& stream, size_t first, size_t limit) {
  SetColumns out = columns_of(stream).sets(first, limit);
  return py::make_tuple(to_array(std::move(out.values)), to_array(std::move(out.offsets)));
}

py::tuple keepers(const Stream& stream, size_t first, size_t last) {
  StreamColumns columns = columns_of(stream);
  require_range(first, last, columns.keepers());
  KeeperColumns out = columns.keepers(first, last);
  return py::make_tuple(to_array(std::move(out.keeper)), to_array(std::move(out.part)), to_array(std::move(out.whole)),
                        to_array(std::move(out.exact)));
}

py::tuple buckets(const Stream& stream, size_t first, size_t last) {
  StreamColumns columns = columns_of(stream);
  require_range(first, last, columns.buckets());
  BucketColumns out = columns.buckets(first, last);
  return py::make_tuple(to_array(std::move(out.size)), to_array(std::move(out.entries)),
                        to_array(std::move(out.position)), to_array(std::move(out.document)));
}

py::tuple band(const Stream& stream, uint32_t number, uint32_t part, uint32_t parts) {
  StreamColumns columns = columns_of(stream);
  require(number < stream.plan().bands, "band must be one of the stream");
  require(part < parts, "part must be one of the parts");
  BandColumns out;
  {
    py::gil_scoped_release nogil;
    out = columns.band(number, part, parts);
  }
  return py::make_tuple(to_array(std::move(out.key)), to_array(std::move(out.holder)));
}

void require_offsets(const Array<int64_t>& offsets, py::ssize_t size) {
  require(offsets.size() >= 1 && offsets.data()[0] >= 0, "offsets must have at least one value, none negative");
  for (py::ssize_t i = 0; i + 1 < offsets.size(); ++i)
    require(offsets.data()[i] <= offsets.data()[i + 1], "offsets must ascend");
  require(offsets.data()[offsets.size() - 1] <= size, "offsets reach past the values");
}

template <class First, class... Rest>
size_t common_size(const Array<First>& first, const Array<Rest>&... rest) {
  require(((rest.size() == first.size()) && ...), "columns must have one value a row");
  return static_cast<size_t>(first.size());
}

}  // namespace

void bind_stream(py::module_& m) {
  py::class_<Stream>(m, "Stream")
      .def(py::init([](uint32_t bands, uint32_t rows, uint32_t num_perm, uint64_t window, uint64_t threshold_ppm,
                       const std::string& verify, bool across, uint64_t memory_bytes, const std::string& directory) {
             require(static_cast<uint64_t>(bands) * rows <= num_perm, "bands * rows must be at most num_perm");
             require(window >= 1, "window must be at least 1");
             StreamPlan plan{bands, rows, num_perm, window, threshold_ppm, parse_verify(verify), across};
             return std::make_unique<Stream>(plan, memory_bytes, directory);
           }),
           py::kw_only(), "bands"_a, "rows"_a, "num_perm"_a, "window"_a, "threshold_ppm"_a, "verify"_a, "across"_a,
           "memory_bytes"_a, "directory"_a)
      .def("decide", decide_stream, py::kw_only(), "lanes"_a.noconvert(), "content"_a.noconvert(),
           "unit_count"_a.noconvert(), "scope_keys"_a = py::none(), "scopes"_a = py::none(), "across"_a = py::none(),
           "hashes"_a = py::none(), "offsets"_a = py::none(), "num_perm"_a)
      .def("representatives", representatives, "first"_a, "last"_a)
      .def("kept", kept, "first"_a, "last"_a)
      .def("sets", sets, "first"_a, "limit"_a)
      .def("keepers", keepers, "first"_a, "last"_a)
      .def("buckets", buckets, "first"_a, "last"_a)
      .def("band", band, "band"_a, "part"_a, "parts"_a)
      .def_property_readonly(
          "rows",
          [](const Stream& stream) {
            StreamColumns columns = columns_of(stream);
            std::vector<size_t> bands;
            for (uint32_t band = 0; band < stream.plan().bands; ++band) bands.push_back(columns.keys(band));
            return py::dict("representatives"_a = columns.representatives(), "kept"_a = columns.kept(),
                            "keepers"_a = columns.keepers(), "buckets"_a = columns.buckets(), "bands"_a = bands);
          },
          "Rows of each table; of the bands a list.")
      .def_property_readonly("bands", [](const Stream& stream) { return stream.plan().bands; })
      .def_property_readonly("documents", &Stream::documents)
      .def_property_readonly("compared", &Stream::compared)
      .def_property_readonly("set_bytes_in_memory", &Stream::set_bytes_in_memory)
      .def_property_readonly("set_bytes_on_disk", &Stream::set_bytes_on_disk);

  py::class_<StreamBuilder>(m, "StreamBuilder")
      .def(py::init<Stream&, int64_t, uint64_t>(), "stream"_a, py::kw_only(), "documents"_a, "compared"_a,
           py::keep_alive<1, 2>())
      .def(
          "representatives",
          [](StreamBuilder& builder, Array<uint64_t> first, Array<uint64_t> second, Array<int32_t> scope,
             Array<int32_t> across, Array<uint8_t> kept) {
            size_t count = common_size(first, second, scope, across, kept);
            py::gil_scoped_release nogil;
            builder.representatives(count, first.data(), second.data(), scope.data(), across.data(), kept.data());
          },
          "first"_a.noconvert(), "second"_a.noconvert(), "scope"_a.noconvert(), "across"_a.noconvert(),
          "kept"_a.noconvert())
      .def(
          "kept",
          [](StreamBuilder& builder, Array<int64_t> position) {
            builder.kept(static_cast<size_t>(position.size()), position.data());
          },
          "position"_a.noconvert())
      .def(
          "sets",
          [](StreamBuilder& builder, Array<uint32_t> values, Array<int64_t> offsets) {
            require_offsets(offsets, values.size());
            py::gil_scoped_release nogil;
            builder.sets(static_cast<size_t>(offsets.size() - 1), values.data(), offsets.data());
          },
          "values"_a.noconvert(), "offsets"_a.noconvert())
      .def(
          "keepers",
          [](StreamBuilder& builder, Array<int64_t> keeper, Array<uint64_t> part, Array<uint64_t> whole,
             Array<uint8_t> exact) {
            builder.keepers(common_size(keeper, part, whole, exact), keeper.data(), part.data(), whole.data(),
                            exact.data());
          },
          "keeper"_a.noconvert(), "part"_a.noconvert(), "whole"_a.noconvert(), "exact"_a.noconvert())
      .def(
          "buckets",
          [](StreamBuilder& builder, Array<uint32_t> size, Array<uint32_t> entries, Array<uint32_t> position,
             Array<uint32_t> document) {
            builder.buckets(common_size(size, entries), size.data(), entries.data(), common_size(position, document),
                            position.data(), document.data());
          },
          "size"_a.noconvert(), "entries"_a.noconvert(), "position"_a.noconvert(), "document"_a.noconvert())
      .def("reserve", &StreamBuilder::reserve, "band"_a, "keys"_a)
      .def(
          "band",
          [](StreamBuilder& builder, uint32_t band, Array<uint64_t> key, Array<uint32_t> holder) {
            size_t count = common_size(key, holder);
            py::gil_scoped_release nogil;
            builder.band(band, count, key.data(), holder.data());
          },
          "band"_a, "key"_a.noconvert(), "holder"_a.noconvert())
      .def("finish", &StreamBuilder::finish);
}

}  // namespace gpudedup
